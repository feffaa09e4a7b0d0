"""docs/troubleshooting.md: what it says that the node says is what the node says."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def said() -> str:
    """Every text in the sources, placeholders as "…", one a line."""
    texts = []
    for source in [*ROOT.glob("rscmd_ros/**/*.py"), *ROOT.glob("rscmd_model/**/*.py")]:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value if isinstance(part, ast.Constant) else "…" for part in node.values))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(texts)


def test_quoted_messages_are_the_node_s() -> None:
    page, texts = (ROOT / "docs" / "troubleshooting.md").read_text(), said()
    cells = [row.split("|")[1] for row in page.splitlines() if row.startswith("| ") and row.count("|") == 4]
    quotes = [quote for cell in cells if "counter" not in cell for quote in re.findall(r"`([^`]+)`", cell)]
    quotes = [q for q in quotes if " " in q]
    assert len(quotes) > 20
    missing = [quote for quote in quotes if any(part.strip() not in texts for part in quote.split("…"))]
    assert not missing
