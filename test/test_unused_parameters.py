"""Parameters that reach nobody: which sections of files rcl takes, and what the node says of the rest."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from rscmd_ros.node.unused_parameters import reaches, sections, unreached

SECTION = "{}:\n  ros__parameters:\n    slop_ms: 9.0\n"


@pytest.mark.parametrize(
    ("section", "node", "taken"),
    [
        ("rscmd_detector", "/rscmd_detector", True),
        ("/rscmd_detector", "/rscmd_detector", True),
        ("rscmd_detector", "/front/rscmd_detector", False),
        ("detector_node", "/rscmd_detector", False),
        ("/front/rscmd_detector", "/front/rscmd_detector", True),
        ("front/rscmd_detector", "/front/rscmd_detector", True),
        ("/**", "/front/rscmd_detector", True),
        ("/*", "/rscmd_detector", True),
        ("/*", "/front/rscmd_detector", False),
        ("/front/*", "/front/rscmd_detector", True),
        ("/*/rscmd_detector", "/front/rscmd_detector", True),
        ("/*/rscmd_detector", "/rscmd_detector", False),
        ("/**/rscmd_detector", "/rscmd_detector", True),
        ("/**/rscmd_detector", "/front/left/rscmd_detector", True),
        ("/front/**", "/front/left/rscmd_detector", True),
        ("/front/**", "/rear/rscmd_detector", False),
    ],
)
def test_sections_reach_whom_rcl_gives_them_to(section, node, taken, tmp_path):
    rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rclpy.context import Context

    assert reaches(section, node) is taken
    (tmp_path / "p.yaml").write_text(SECTION.format(section))
    context = Context()
    context.init(args=["--ros-args", "--params-file", str(tmp_path / "p.yaml")])
    space, _, name = node.rpartition("/")
    asked = rclpy.create_node(
        name, namespace=space, context=context, automatically_declare_parameters_from_overrides=True
    )
    assert asked.has_parameter("slop_ms") is taken
    asked.destroy_node()
    context.try_shutdown()


def test_sections_of_a_file():
    text = """
/**:
  ros__parameters:
    visible: {transport: compressed}
    classes: [person, car]
front:
  rscmd_detector:
    ros__parameters: {slop_ms: 3, a: {b: {c: 1}}}
  /other: {ros__parameters: {x: 2026-13-45}}
"""
    assert sections(text) == {
        "/**": ["visible.transport", "classes"],
        "front/rscmd_detector": ["slop_ms", "a.b.c"],
        "front//other": ["x"],
    }
    assert sections("") == sections("[1, 2]") == sections("a: {b: c}") == sections(": {") == {}


@pytest.mark.parametrize(
    ("text", "node", "words"),
    [
        (
            SECTION.format("detector_node"),
            "/rscmd_detector",
            "has no section for this node, /rscmd_detector, and is not",
        ),
        (
            SECTION.format("detector_node"),
            "/rscmd_detector",
            "it has 'detector_node': name the section /rscmd_detector, or",
        ),
        (SECTION.format("/*"), "/front/rscmd_detector", "it has '/*': name the section /front/rscmd_detector"),
        (SECTION.format("rscmd_detector"), "/det", "it has 'rscmd_detector'"),
        ("", "/rscmd_detector", "holds no parameters"),
        (
            SECTION.format("/**") + SECTION.format("rscmd_detector"),
            "/front/rscmd_detector",
            "section 'rscmd_detector' is not for this node, /front/rscmd_detector, and not used",
        ),
        ("".join(SECTION.format(f"n{i}") for i in range(100)), "/rscmd_detector", "'n7' and 92 more"),
    ],
)
def test_a_file_that_does_not_reach_the_node_is_named_with_its_sections(text, node, words, tmp_path):
    file = tmp_path / "p.yaml"
    file.write_text(text)
    said = unreached(["detector", "--ros-args", "--params-file", str(file), "-r", "a:=b"], node)
    assert len(said) == 1
    assert str(file) in said[0]
    assert words in said[0]


@pytest.mark.parametrize(
    ("text", "node"),
    [
        (SECTION.format("rscmd_detector"), "/rscmd_detector"),
        (SECTION.format("/**"), "/a/b"),
        (SECTION.format("/**") + SECTION.format("camera"), "/rscmd_detector"),
        (SECTION.format("/front/rscmd_detector") + SECTION.format("/rear/rscmd_detector"), "/rear/rscmd_detector"),
    ],
)
def test_a_file_that_reaches_the_node_is_not_spoken_of(text, node, tmp_path):
    (tmp_path / "p.yaml").write_text(text)
    assert unreached(["--ros-args", "--params-file", str(tmp_path / "p.yaml")], node) == []
    assert unreached(["--params-file", "/nowhere", "--ros-args", "--", "--params-file", "/nowhere"], node) == []


@pytest.mark.parametrize(
    "text",
    [
        "/**:\n  ros__parameters:\n    slop_ms: 20.0\n    reuse: true\n    slop_ms: 70.0\n",
        "/**: {ros__parameters: {slop_ms: 20.0}}\n/**: {ros__parameters: {slop_ms: 70.0}}\n",
    ],
)
def test_a_parameter_that_stands_twice_is_named(text, tmp_path):
    """rcl takes the last one and says nothing."""
    rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")
    from rclpy.context import Context

    (tmp_path / "p.yaml").write_text(text)
    words = ["--ros-args", "--params-file", str(tmp_path / "p.yaml")]
    (line,) = unreached(words, "/rscmd_detector")
    assert line.endswith("p.yaml: section '/**' gives 'slop_ms' more than once: the last value counts")
    context = Context()
    context.init(args=words)
    node = rclpy.create_node("n", context=context, automatically_declare_parameters_from_overrides=True)
    assert node.get_parameter("slop_ms").value == 70.0
    node.destroy_node()
    context.try_shutdown()


def test_rules_for_other_nodes_are_named():
    args = [
        "--ros-args",
        "-p",
        "other:slop_ms:=3",
        "--param",
        "slop_ms:=4",
        "-p",
        "model:=a:b",
        "-p",
        "det:reuse:=true",
    ]
    assert unreached(args, "/det") == ["-p other:slop_ms:=3 is for node /other and not used: this one is /det"]


# The node itself, in this process


@contextmanager
def detector(*words: str) -> Iterator:
    """A DetectorNode that was started with these words after --ros-args."""
    rclpy = pytest.importorskip("rclpy", reason="rclpy is not installed")
    pytest.importorskip("vision_msgs", reason="vision_msgs is not installed")
    from rscmd_ros.node.detector import DetectorNode

    rclpy.init(args=["--ros-args", *words])
    try:
        node = DetectorNode()
        yield node
        node.destroy_node()
    finally:
        rclpy.try_shutdown()


def test_the_first_line_tells_what_differs_from_the_defaults(capfd):
    with detector("-p", "slop_ms:=20", "-p", "classes:=[car]", "-p", "model:=/a b.safetensors"):
        lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith(
        'parameters that differ from their defaults: model "/a b.safetensors", classes ["car"], slop_ms 20.0'
    )
    with detector():
        assert capfd.readouterr().err.splitlines()[0].endswith("parameters that differ from their defaults: none")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (
            "visible.transport:=compressed",
            "'visible.transport' is unknown and not used; did you mean 'visible_transport'?",
        ),
        ("confidence_treshold:=0.5", "did you mean 'confidence_threshold'?"),
        ("detector.slop_ms:=0.5", "'detector.slop_ms' is unknown and not used; did you mean 'slop_ms'?"),
        ("zz.xyz:=1", "'zz.xyz' is unknown and not used; there are model, registration"),
        (
            "qos_overrides./visible/imag.subscription.depth:=1",
            "did you mean 'qos_overrides./visible/image.subscription.de",
        ),
        (
            "qos_overrides./detections.publisher.depth:=1",
            "unknown and not used; there are qos_overrides./visible/image.",
        ),
    ],
)
def test_names_that_are_no_parameter_are_warned_of(rule, words, capfd):
    with detector("-p", rule):
        said = capfd.readouterr().err
    assert words in said
    assert said.count("[WARN]") == 1


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("/visible/image", ()),
        ("/visible/image", ("-r", "visible/image:=/camera/image_raw")),
        ("/camera/image_raw", ("-r", "visible/image:=/camera/image_raw")),
        ("/visible/image", ("-r", "visible/image:=/camera/image_raw", "-p", "visible_transport:=compressed")),
        (
            "/camera/image_raw/compressed",
            ("-r", "visible/image:=/camera/image_raw", "-p", "visible_transport:=compressed"),
        ),
        ("/front/visible/image", ("-r", "__ns:=/front")),
    ],
)
def test_qos_is_overridden_by_the_topic_s_own_name_and_by_the_remapped_one(override, words, capfd):
    from sensor_msgs.msg import Image

    from rscmd_ros.node.inputs import follow_overrides, image_names

    with detector("-p", f"qos_overrides.{override}.subscription.depth:=3", *words) as node:
        assert "[WARN]" not in capfd.readouterr().err
        names = image_names(node, "visible", node._settings.visible_transport)
        follow_overrides(node, names)
        from rclpy.qos_overriding_options import QoSOverridingOptions

        from rscmd_ros.node.inputs import OVERRIDABLE, image_qos

        options = QoSOverridingOptions(OVERRIDABLE)
        qos = image_qos("best_effort", 30)
        subscription = node.create_subscription(Image, names[0], print, qos, qos_overriding_options=options)
        assert subscription.qos_profile.depth == 3
        assert node.get_parameter(f"qos_overrides.{subscription.topic_name}.subscription.depth").value == 3


def test_the_override_by_the_name_in_force_wins():
    from rscmd_ros.node.inputs import follow_overrides, image_names

    rules = [f"qos_overrides.{name}.subscription.depth:={n}" for name, n in (("/visible/image", 3), ("/cam", 4))]
    with detector("-p", rules[0], "-p", rules[1], "-r", "visible/image:=/cam") as node:
        follow_overrides(node, image_names(node, "visible", "raw"))
        assert node._parameter_overrides["qos_overrides./cam.subscription.depth"].value == 4


def test_what_is_asked_of_a_topic_is_what_the_parameters_say_at_every_activation():
    """Save for the policies that were overridden: rclpy keeps those of the first subscription."""
    with detector("-p", "qos_overrides./thermal/image.subscription.depth:=3") as node:
        from rclpy.qos import QoSReliabilityPolicy

        from rscmd_ros.node.detection import make_rig
        from rscmd_ros.node.parameters import Settings

        for reliability, depth in (("best_effort", 30), ("reliable", 50)):
            settings = Settings(visible_reliability=reliability, thermal_reliability=reliability, queue_size=depth)
            node._inputs.open(node, make_rig(settings, None), settings)
            asked = {stream: known.qos_profile for stream, known in node._inputs._images.items()}
            wanted = getattr(QoSReliabilityPolicy, reliability.upper())
            assert [qos.reliability for qos in asked.values()] == [wanted, wanted]
            assert {stream: qos.depth for stream, qos in asked.items()} == {"visible": depth, "thermal": 3}
            node._inputs.close(node)


def test_a_publisher_that_offered_too_little_is_forgotten_with_the_next_image():
    from types import SimpleNamespace

    with detector() as node:
        for stream in ("visible", "thermal"):
            node._note_mismatch(stream, "RELIABILITY")
        node._intake = SimpleNamespace(fallback=object(), receive=lambda *_: None, stop=lambda: None)
        node._receive("thermal", SimpleNamespace())
        assert node._condition.mismatched == {"visible": "RELIABILITY"}
        node._intake = None


@pytest.mark.parametrize(
    ("words", "topic"),
    [
        ((), "/visible/camera_info"),
        (("-r", "visible/image:=/camera/image_raw"), "/camera/camera_info"),
        (("-r", "visible/image:=/camera/image_raw", "-r", "visible/camera_info:=/calib/info"), "/calib/info"),
        (("-r", "visible/camera_info:=/calib/info"), "/calib/info"),
        (("-r", "visible/image:=/camera/image_raw", "-r", "/camera/camera_info:=/calib/info"), "/calib/info"),
        (("-r", "__ns:=/front"), "/front/visible/camera_info"),
    ],
)
def test_a_camera_info_is_the_sibling_of_its_image_unless_remapped_by_itself(words, topic):
    from rscmd_ros.node.inputs import info_name

    with detector(*words) as node:
        assert info_name(node, "visible") == topic


def test_an_empty_list_of_classes_means_all(tmp_path):
    (tmp_path / "p.yaml").write_text("/**:\n  ros__parameters:\n    classes: []\n")
    for words in (("-p", "classes:=[]"), ("--params-file", str(tmp_path / "p.yaml"))):
        with detector(*words) as node:
            assert node._settings.classes == ("",)


@pytest.mark.parametrize("rule", ["slop_ms:=[]", "extrinsics:=[]", "slop_ms:=fast", "extrinsics:=[a]", "model:=[]"])
def test_values_that_are_no_value_do_not_start_the_node(rule):
    from rclpy.exceptions import ParameterException

    with pytest.raises(ParameterException, match=rule.partition(":")[0]), detector("-p", rule):
        pass


def test_parameters_set_later(capfd):
    from rclpy.parameter import Parameter

    with detector() as node:
        kind = Parameter.Type
        for classes, settled in (([], ()), (["car"], ("car",)), (("",), ("",))):
            assert node.set_parameters_atomically([Parameter("classes", kind.STRING_ARRAY, classes)]).successful
            assert node._settings.classes == settled
        # What `ros2 param set /rscmd_detector classes []` sends.
        assert node.set_parameters_atomically([Parameter("classes", kind.BOOL_ARRAY, [])]).successful
        for name, value, words in (
            ("fallback", "x\n[INFO] forged\x1b" + "y" * 10**6, r"parameter 'fallback' has 1000016 characters"),
            ("fallback", "x\n[INFO] forged\x1b", r"is 'x\n[INFO] forged\x1b'; choose one of both"),
            ("slop\n_ms" + "y" * 10**6, 1.0, r"parameter 'slop\n_msyyyy"),
            ("slop", 1.0, "did you mean 'slop_ms'?"),
            ("qos_overrides./visible/image.subscription.depth", 9, "are read at the start alone"),
        ):
            result = node.set_parameters_atomically([Parameter(name, value=value)])
            assert not result.successful
            assert words in result.reason
            assert result.reason.isprintable()
            assert len(result.reason) < 2000
