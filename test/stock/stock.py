"""Does what README.md says under "On ROS 2 Jazzy" on a stock Debian, and looks whether detections come out.

    sudo .venv/bin/python test/stock/stock.py --sources DIR --work DIR [--dockerfile]

For people, not for `make test`: it takes root, debootstrap, the network and 20 GB. `make demo` comes first, for the
model and the bag. The stock system is a debootstrap with the system's Python, apt's colcon and rosdep, and
/opt/ros/jazzy made of the wheels of ROS 2 and of upstream's packages that are pure Python and not on PyPI. Those are
read from --sources, which holds a folder for each of these public repositories (branch jazzy, or rolling):

    ros2: launch launch_ros ros2cli rosidl_runtime_py rcl_interfaces message_filters
    osrf: osrf_pycommon     ros-perception: vision_opencv     ros: rosdistro (only with --rosdistro)

The commands come from README.md as they stand there; `<this repository>` alone is filled in, with the last commit. The
first run keeps the system before the recipe in WORK/base, later ones start from a copy of it. With --dockerfile the
RUN steps of the Dockerfile are carried out in another copy.
"""

import argparse
import datetime
import json
import os
import re
import shlex
import shutil
import signal
import string
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent.parent
DEMO = ROOT / "runs" / "demo"
PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
# Of an installed ROS 2, its ros-dev-tools and its own dependencies. All else is for the recipe to bring.
APT = """
    ca-certificates git g++ python3-dev python3-pip python3-setuptools python3-numpy python3-yaml
    python3-packaging python3-argcomplete python3-psutil python3-lark python3-empy python3-catkin-pkg python3-venv
    python3-rosdep2 colcon python3-colcon-bash python3-colcon-ros python3-colcon-package-information
    python3-colcon-package-selection python3-colcon-parallel-executor
"""
WHEELS = "ros-jazzy-rclpy ros-jazzy-rmw-fastrtps-cpp ros-jazzy-sensor-msgs ros-diagnostic-msgs ros-std-srvs"
PURE = """osrf_pycommon rosidl_runtime_py launch/launch launch/launch_xml launch/launch_yaml launch_ros/launch_ros
    launch_ros/ros2launch ros2cli/ros2cli ros2cli/ros2run ros2cli/ros2node ros2cli/ros2topic ros2cli/ros2param
    ros2cli/ros2lifecycle ros2cli/ros2service ros2cli/ros2pkg"""
# Packages of CMake and C++ whose Python part is what is used here.
PARTS = {
    "message_filters": ("message_filters", "message_filters/src/message_filters"),
    "cv_bridge": ("vision_opencv/cv_bridge", "vision_opencv/cv_bridge/python/cv_bridge"),
}
# The wheels find their libraries by a .pth of their own, which a distribution has not: here LD_LIBRARY_PATH does it.
SETUP = """export ROS_VERSION=2 ROS_PYTHON_VERSION=3 ROS_DISTRO=jazzy
export AMENT_PREFIX_PATH=/opt/ros/jazzy${AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}
export PYTHONPATH=$(echo /opt/ros/jazzy/lib/python3*/site-packages)${PYTHONPATH:+:$PYTHONPATH}
export PATH=/opt/ros/jazzy/bin:$PATH
export LD_LIBRARY_PATH=/opt/ros/jazzy/lib$(printf ':%s' /opt/ros/jazzy/lib/python3*/site-packages/ros_*.libs)
"""


class Stock:
    """A root folder to run commands in.

    Args:
        folder: the root.
        log: where the commands write.
        binds: folders of this machine that are seen in there too, for instance those that pip's settings name.
    """

    def __init__(self, folder: Path, log: Path, binds: list[Path]) -> None:
        self.folder, self.log, self.binds = folder, log, binds

    def run(self, script: str, environ: dict[str, str] | None = None, cwd: str = "/root", user: str = "root") -> None:
        """Runs a bash script; raises SystemExit with the end of the log when it fails."""
        mounts = [f"mount -t proc proc {self.folder}/proc", f"mount --rbind /dev {self.folder}/dev"]
        for bind in self.binds:
            (self.folder / str(bind).lstrip("/")).mkdir(parents=True, exist_ok=True)
            mounts.append(f"mount --bind {bind} {self.folder}{bind}")
        variables = {"HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        variables["PATH"] = PATH
        # What belongs to this machine's network, and the ROS domain to run in.
        variables |= {
            name: value
            for name, value in os.environ.items()
            if name.lower().endswith("_proxy") or name.startswith(("PIP_", "ROS_DOMAIN_ID"))
        }
        variables |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"} | (environ or {})
        words = ["env", "-i", *(f"{name}={value}" for name, value in variables.items())]
        words += ["bash", "-c", f"cd {cwd} && {script}"]
        enter = [*mounts, f"exec chroot --userspec={user} {self.folder} {shlex.join(words)}"]
        # Mounts and processes end with it.
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-ec", "\n".join(enter)]
        with self.log.open("a") as log:
            print(f"\n$ {script}", file=log, flush=True)
            code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT).returncode
        if code != 0:
            tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-25:])
            sys.exit(f"{tail}\nerror: exit code {code}; the whole log is {self.log}")

    def copy(self, folder: Path) -> "Stock":
        """A root of its own with the same contents."""
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run(["cp", "-a", "--reflink=auto", str(self.folder), str(folder)], check=True)
        return Stock(folder, folder.with_suffix(".log"), self.binds)


def make_system(base: Stock, args: argparse.Namespace) -> None:
    """debootstrap, and what apt brings before ROS is there."""
    shutil.rmtree(base.folder, ignore_errors=True)
    step(f"debootstrap of {args.suite}")
    command = ["debootstrap", "--variant=minbase", "--include=ca-certificates", args.suite, str(base.folder)]
    with base.log.open("w") as log:
        code = subprocess.run([*command, *([args.mirror] if args.mirror else [])], stdout=log, stderr=log).returncode
    if code != 0:
        sys.exit(f"error: debootstrap failed; see {base.log}")
    give_network(base.folder)
    # What is thrown away need not be on the disk before the next package.
    (base.folder / "etc/dpkg/dpkg.cfg.d/throwaway").write_text("force-unsafe-io\n")
    base.run("apt-get update && apt-get install -y --no-install-recommends " + " ".join(APT.split()))


def make_ros(base: Stock, args: argparse.Namespace) -> None:
    """/opt/ros/jazzy, as a distribution lays it out."""
    step("/opt/ros/jazzy")
    given = base.folder / "given"
    for name in (
        "requirements.lock",
        "underlay/generate_messages.py",
        "underlay/vision_msgs",
        "underlay/foxglove_msgs",
    ):
        put(ROOT / name, given / name)
    for name in {part.split("/")[0] for part in PURE.split()} | {"rcl_interfaces", "message_filters", "vision_opencv"}:
        put(args.sources / name, given / name)
    if args.rosdistro:
        put(args.rosdistro, given / "rosdistro")
    prefix = base.folder / "opt/ros/jazzy"
    python, site = "/opt/ros/jazzy/bin/python", "$(echo /opt/ros/jazzy/lib/python3*/site-packages)"
    base.run("rm -rf /opt/ros && python3 -m venv --system-site-packages /opt/ros/jazzy")
    base.run("grep ^ros- /given/requirements.lock > /given/lock")
    base.run(f"{python} -m pip install --no-compile -c /given/lock {WHEELS}")
    pure = " ".join(f"/given/{part}" for part in PURE.split())
    base.run(f"{python} -m pip install --no-compile --no-deps --no-build-isolation {pure}")
    for package in ("underlay/vision_msgs", "underlay/foxglove_msgs", "rcl_interfaces/composition_interfaces"):
        generate = f"{python} /given/underlay/generate_messages.py /given/{package}"
        base.run(f"{generate} --build /given/build --prefix /opt/ros/jazzy && rm -r /given/build")
    for name, (package, modules) in PARTS.items():
        base.run(f"cp -r /given/{modules} {site}/ && mkdir -p /opt/ros/jazzy/share/{name}")
        shutil.copy(args.sources / package / "package.xml", prefix / "share" / name)
        (prefix / "share/ament_index/resource_index/packages" / name).touch()
    # From an environment to a distribution: the system's Python, its pip, and nothing that starts Python anew.
    tools = " ".join(f"{site}/{name}" for name in ("pip*", "setuptools*", "pkg_resources", "_distutils_hack", "*.pth"))
    base.run(f"rm -rf /opt/ros/jazzy/bin/python* /opt/ros/jazzy/bin/[ap]* {tools}")
    (prefix / "pyvenv.cfg").unlink()
    for script in (prefix / "bin").iterdir():
        # Programs lie there too, and are written back as they were.
        script.write_bytes(re.sub(rb"\A#!.*python\S*", b"#!/usr/bin/python3", script.read_bytes()))
    for name in ("setup.bash", "setup.sh", "local_setup.bash", "local_setup.sh"):
        (prefix / name).write_text(SETUP)
    base.run(
        "source /opt/ros/jazzy/setup.bash && python3 -c 'import rclpy, launch_ros.actions, vision_msgs.msg, cv_bridge'"
    )
    base.run("source /opt/ros/jazzy/setup.bash && ros2 --help")


def give_network(folder: Path) -> None:
    """This machine's name servers, certificates, apt sources of the same system and settings of pip."""
    release = Path("/etc/os-release").read_text()
    same = (folder / "etc/os-release").read_text() == release
    files = ["/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt", "/etc/pip.conf", "/etc/xdg/pip"]
    files += ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/apt.conf.d/proxy.conf"] if same else []
    for name in files:
        if Path(name).exists():
            put(Path(name), folder / name.lstrip("/"))
    user = Path.home() / ".config" / "pip"
    if user.exists():
        put(user, folder / "root/.config/pip")


def put(source: Path, target: Path) -> None:
    if not source.exists():
        sys.exit(f"error: {source} is not there")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    else:
        shutil.copyfile(source, target)


def step(title: str) -> None:
    print(f"{datetime.datetime.now():%H:%M:%S}  {title}", flush=True)


def recipe() -> tuple[str, str]:
    """The commands of the README's section: all but the last, which launches, and that one."""
    readme = (ROOT / "README.md").read_text()
    section = readme.partition("\n## On ROS 2 Jazzy\n")[2].partition("\n## ")[0]
    block = section.partition("```console\n")[2].partition("```")[0]
    lines = block.replace("\\\n", " ").splitlines()
    if not lines or not lines[-1].startswith("ros2 launch "):
        sys.exit('error: README.md has no commands under "On ROS 2 Jazzy" that end in ros2 launch')
    return "\n".join(lines[:-1]), lines[-1]


def prepare(stock: Stock, args: argparse.Namespace) -> None:
    """What the recipe's user has: this repository, rosdep's lists, a model and a recording."""
    given = stock.folder / "given"
    bundle = given / "rscmd_ros.bundle"
    subprocess.run(["git", "-C", str(ROOT), "bundle", "create", "-q", str(bundle), "HEAD"], check=True)
    put(args.model, stock.folder / "root/ws/model.safetensors")
    put(args.bag, given / "bag")
    if args.rosdistro:
        lists = [f"yaml file:///given/rosdistro/rosdep/{name}.yaml" for name in ("base", "python", "ruby")]
        (stock.folder / "etc/ros/rosdep/sources.list.d/20-default.list").write_text("\n".join(lists) + "\n")


def follow_the_readme(stock: Stock, args: argparse.Namespace) -> dict[str, Any]:
    """The recipe to its end, a bag played to the node that runs then, and the tests of launch and package."""
    commands, launch = recipe()
    index = {"ROSDISTRO_INDEX_URL": "file:///given/rosdistro/index-v4.yaml"} if args.rosdistro else {}
    commands = commands.replace("<this repository>", "/given/rscmd_ros.bundle")
    step("the recipe: rosdep, venv, pip, colcon")
    stock.run("rosdep update --rosdistro jazzy", index)
    began = time.monotonic()
    stock.run(f"set -ex\n{commands}", index)
    took = time.monotonic() - began

    step("ros2 launch, and the bag played to it")
    # A shell of its own, without the virtual environment. Without -m its background jobs would not hear of SIGINT.
    shell = "source /opt/ros/jazzy/setup.bash; source install/setup.bash; set -mx\n"
    play = "ros2 run rscmd_ros evaluate_bag /given/bag --model model.safetensors --live --wait 120"
    play += (
        " --json /given/score.json --ros-args -r visible/image:=/camera/image_raw -r thermal/image:=/thermal/image_raw"
    )
    end = "kill -INT $node; wait $node && exit $played"
    stock.run(f"{shell}{launch} & node=$!\n{play}; played=$?; {end}", cwd="/root/ws")
    score = json.loads((stock.folder / "given/score.json").read_text())
    if not score["pairs_answered"]:
        sys.exit(f"error: no detections came out; see {stock.log}")

    step("test_launch and test_package")
    tests = "test/test_launch.py test/test_package.py"
    source = "source /opt/ros/jazzy/setup.bash; source .venv/bin/activate; cd src/rscmd_ros"
    stock.run(f"{source}; python -m pytest -q -rs -p no:cacheprovider {tests}", cwd="/root/ws")
    passed = re.findall(r"^\d+ passed.*$", stock.log.read_text(), re.MULTILINE)[-1]
    names = ("numpy", "cv2", "matplotlib", "torch", "setuptools")
    shown = ", ".join(f"{name!r}, {name}.__version__" for name in names)
    code = f"import platform, {', '.join(names)}; print('Python', platform.python_version(), {shown})"
    stock.run(f"source /opt/ros/jazzy/setup.bash; .venv/bin/python -c {shlex.quote(code)}", cwd="/root/ws")
    return {"seconds": took, "score": score, "tests": passed, "versions": stock.log.read_text().splitlines()[-1]}


def build_the_image(stock: Stock, args: argparse.Namespace) -> list[str]:
    """Carries out a Dockerfile's steps in a root folder, as an engine would; returns the RUN steps."""
    from dockerfile_parse import DockerfileParser

    environ, cwd, user = {"ROS_DISTRO": "jazzy"}, "/", "root"
    done: list[str] = []
    steps = DockerfileParser(str(ROOT / "Dockerfile"), build_args={}).structure
    context = stock.folder / "given/context"
    context.mkdir(parents=True)
    archive = subprocess.run(["git", "-C", str(ROOT), "archive", "HEAD"], stdout=subprocess.PIPE, check=True).stdout
    subprocess.run(["tar", "-x", "-C", str(context)], input=archive, check=True)
    if args.rosdistro:
        environ["ROSDISTRO_INDEX_URL"] = "file:///given/rosdistro/index-v4.yaml"
    for one in steps:
        kind, value = one["instruction"], " ".join(one["value"].split())
        if kind in ("ARG", "ENV"):
            for word in shlex.split(value):
                name, _, content = word.partition("=")
                if kind == "ENV" or content:
                    environ[name] = string.Template(content).safe_substitute({"PATH": PATH, **environ})
        elif kind == "WORKDIR":
            cwd = value
            (stock.folder / cwd.lstrip("/")).mkdir(parents=True, exist_ok=True)
        elif kind == "USER":
            user, environ["HOME"] = string.Template(value).substitute(environ), "/home/robot"
        elif kind == "COPY":
            *sources, target = [word for word in value.split() if not word.startswith("--")]
            owner = "".join(re.findall(r"--chown=(\S+)", value)) or "root"
            every = [f"/given/context/{source}" for source in sources]
            copies = [f"if [ -d {one} ]; then cp -r {one}/. {target}; else cp {one} {target}; fi" for one in every]
            stock.run(" && ".join([f"mkdir -p {target}", *copies, f"chown -R {owner} {target}"]), environ, cwd)
        elif kind == "RUN":
            step(f"RUN {value[:90]}")
            stock.run(value, environ, cwd, user)
            done.append(value)
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sources", type=Path, required=True, help="folder with upstream's repositories")
    parser.add_argument("--work", type=Path, required=True, help="folder to make the systems in")
    parser.add_argument("--suite", default="bookworm", help="of Debian (default %(default)s)")
    parser.add_argument("--mirror", help="of Debian, for debootstrap (default: its own)")
    parser.add_argument("--model", type=Path, default=DEMO / "model.safetensors", help="default: that of make demo")
    parser.add_argument("--bag", type=Path, default=DEMO / "bag", help="default: that of make demo")
    parser.add_argument("--rosdistro", type=Path, help="ros/rosdistro, for rosdep where its lists cannot be fetched")
    parser.add_argument("--bind", type=Path, action="append", default=[], help="folder to be seen inside, too")
    parser.add_argument("--dockerfile", action="store_true", help="carry out the Dockerfile in place of the recipe")
    args = parser.parse_args()
    missing = [tool for tool in ("debootstrap", "unshare", "chroot", "git") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        sys.exit(f"error: this takes root{''.join(f' and {tool}' for tool in missing)}")
    # In the background SIGINT may be ignored; ros2 launch, which is to end by it, would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    args.work = args.work.resolve()
    args.work.mkdir(parents=True, exist_ok=True)
    base = Stock(args.work / "base", args.work / "base.log", [path.resolve() for path in args.bind])
    for make in (make_system, make_ros):
        done = base.folder / f"given/{make.__name__}"
        if not done.is_file():
            make(base, args)
            done.parent.mkdir(exist_ok=True)
            done.touch()
    stock = base.copy(args.work / ("image" if args.dockerfile else "stock"))
    prepare(stock, args)
    if args.dockerfile:
        print(f"{len(build_the_image(stock, args))} RUN steps carried out; the log is {stock.log}")
        return
    result = follow_the_readme(stock, args)
    score = result["score"]
    print(f"date       {datetime.date.today()}, {args.suite}, {result['versions']}")
    print(f"recipe     {result['seconds']:.0f} s (rosdep, venv, pip, colcon)")
    print(f"detections {score['pairs_answered']} of {score['pairs']} pairs answered, mAP50 {100 * score['mAP50']:.1f}")
    print(f"tests      {result['tests']}")
    print(f"the log is {stock.log}")


if __name__ == "__main__":
    main()
