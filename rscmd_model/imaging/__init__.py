"""Pictures of both cameras: reading, scaling, laying one over the other, drawing. May import the ground alone."""
