"""Makes `.venv`: ROS 2 Jazzy from wheels, torch, ultralytics, and the packages of this folder.

    python3 underlay/environment.py [--ros kilted] [--oldest] [--venv DIR]

With `--ros kilted` it is ROS 2 Kilted, in `.venv.kilted`; the versions of everything else are the same. With `--oldest`
there is `.venv.oldest` beside it, with the oldest versions of NumPy, OpenCV and others that the project supports.

Each step leaves a stamp in `.venv/.setup` when it is done, made from everything that went into it. So a second run does
nothing, a changed lock file redoes what hangs on it, and an interrupted run goes on where it stopped. Standard library
only, and the syntax is kept to what Python 3.6 reads, so that an old Python gets a sentence and not a traceback.
"""

import argparse
import csv
import ctypes
import fcntl
import glob
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from typing import Any, Callable, Dict, Iterable, List, Optional, Set, Tuple

from machine import SetupError, check_disk, check_machine, clean_environment, find_compiler, find_python, together

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
UNDERLAY = os.path.join(ROOT, "underlay")
REQUIREMENTS = os.path.join(ROOT, "requirements.in")
LOCK = os.path.join(ROOT, "requirements.lock")
# Versions that stand in for those of LOCK.
OLDEST = os.path.join(ROOT, "requirements.oldest.lock")
# The distribution that those two name; any other has a lock of its own for its `ros-` packages.
JAZZY = "jazzy"
GENERATOR = os.path.join(UNDERLAY, "generate_messages.py")
LIBRARIES = os.path.join(UNDERLAY, "rscmd_libraries.py")
# The packages unpacked, and the downloads that lie beside them until pip is done: with torch for CUDA, and for the CPU.
DISK_GB, DISK_GB_CPU, DISK_GB_OLDEST = 11.0, 4.0, 1.0
LIBC = ctypes.CDLL(None)


def say(text: str) -> None:
    print("setup: " + text, flush=True)


def die_with_parent() -> None:
    """Has the kernel end this process with the one that started it: a pip left behind would meet the next setup's."""
    LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def run(command: List[str], log: str, **more: str) -> None:
    """Runs a program with its output into the file `log`, and says every ten seconds what it is at."""
    since, action, done = time.time(), [""], threading.Event()

    def report() -> None:
        while not done.wait(10):
            say(f"  {time.time() - since:4.0f} s  {action[0][:100]}")

    threading.Thread(target=report, daemon=True).start()
    with open(log, "w") as file:
        file.write("$ {}\n".format(" ".join(command)))
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env=clean_environment(**more),
            universal_newlines=True,
            errors="replace",
            preexec_fn=die_with_parent,
        )
        assert child.stdout is not None
        for line in child.stdout:
            file.write(line)
            file.flush()
            if re.match(
                r"\s*(Collecting|Downloading|Using cached|Processing|Installing|Building|generated|compil)", line
            ):
                action[0] = " ".join(line.split())
    done.set()
    if child.wait() != 0:
        raise SetupError(reason_in(log))


def reason_in(log: str) -> str:
    """One line on why a program failed, from what it printed."""
    text = read(log)
    tail = "; the whole story is in " + log
    if "No space left on device" in text:
        return "the disk is full" + tail
    if re.search(r"name resolution|NewConnectionError|ConnectionError|ProxyError|timed out|SSLError", text):
        return (
            "no network: pip cannot reach its package index (proxies and mirrors belong in pip's own settings)" + tail
        )
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"ERROR|.*\b[Ee]rror:", line)]
    return (errors or lines)[-1][:300] + tail


class Environment:
    """One environment folder, and the stamps of the steps that made it."""

    def __init__(self, venv: str) -> None:
        self.venv = venv
        self.python = os.path.join(venv, "bin", "python")
        self.state = os.path.join(venv, ".setup")
        self.key = ""
        self.worked = False

    def file(self, name: str) -> str:
        return os.path.join(self.state, name)

    def key_with(self, inputs: Iterable[str]) -> str:
        """What the stamp of the next step holds once it is done for these inputs."""
        digest = hashlib.sha256(self.key.encode())
        for text in inputs:
            digest.update(hashlib.sha256(text.encode()).digest())
        return digest.hexdigest()

    def step(self, name: str, title: str, inputs: Iterable[str], work: Callable[[], None]) -> None:
        """Does `work` unless it was done for exactly these inputs, after the same earlier steps."""
        self.key = self.key_with(inputs)
        if read(self.file(name)) == self.key:
            return
        say(title + " ...")
        self.worked, since = True, time.time()
        work()
        write(self.file(name), self.key)
        say(f"{title}: {time.time() - since:.0f} s")

    def say_ready(self, began: float) -> None:
        say(f"{self.venv} is ready after {time.time() - began:.0f} s" if self.worked else f"{self.venv} is up to date")

    def series(self) -> Optional[str]:
        """The version, like "3.12", of the Python inside, or None where it is missing or does not start."""
        command = [self.python, "-I", "-S", "-c", "import sys; print('{}.{}'.format(*sys.version_info))"]
        try:
            answer = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
        except (OSError, subprocess.SubprocessError):
            return None
        return answer.stdout.decode().strip()

    def site(self) -> str:
        found = glob.glob(os.path.join(self.venv, "lib", "python3*", "site-packages"))
        if len(found) != 1:
            raise SetupError(f"{self.venv} is damaged: remove it and run this again")
        return found[0]

    def create(self, python: str, disk_gb: float, *options: str) -> None:
        if os.path.isdir(self.venv) and os.listdir(self.venv) and not os.path.isdir(self.state):
            raise SetupError(f"{self.venv} is not of this setup's making: move it away and run this again")
        check_disk(self.venv, disk_gb)
        if os.path.isdir(self.venv):
            # The state folder goes last: until then an interruption leaves a folder that is known for our own.
            for name in sorted(os.listdir(self.venv), key=lambda name: name == ".setup"):
                remove(os.path.join(self.venv, name))
        os.makedirs(self.state)
        run([python, "-m", "venv", *options, self.venv], self.file("venv.log"))

    def install_packages(self, requirements: str, lock: str) -> None:
        wanted, versions = self.file("requirements.in"), self.file("requirements.lock")
        write(wanted, requirements)
        write(versions, lock)
        pip = [self.python, "-m", "pip", "install", "--no-input", "--no-compile", "--progress-bar=off", "-c", versions]
        run([self.python, "-m", "pip", "config", "list"], self.file("pip.log"))
        check_disk(self.venv, DISK_GB_CPU if "/cpu" in read(self.file("pip.log")) else DISK_GB)
        forget_broken(self.site())
        # Beside the environment, because a /tmp in memory is too small for torch.
        temporary = self.file("tmp")
        remove(temporary)
        os.makedirs(temporary)
        # setuptools comes first and builds are not isolated, so that source packages are built with the pinned one too.
        run([*pip, "pip", "setuptools"], self.file("pip.log"), TMPDIR=temporary)
        run([*pip, "--no-build-isolation", "-r", wanted], self.file("packages.log"), TMPDIR=temporary)
        self.do_without_desktop(pip)
        remove(temporary)

    def do_without_desktop(self, pip: List[str]) -> None:
        """opencv-python wants the shared libraries of a desktop; a server has its twin that does not."""
        if os.path.isdir(os.path.join(self.site(), "cv2")) and not self.imports("cv2"):
            say("  OpenCV lacks desktop libraries here, installing its headless build over it")
            run([*pip, "--no-deps", "--force-reinstall", "opencv-python-headless"], self.file("opencv.log"))

    def install_oldest(self, base: "Environment", lock: str) -> None:
        """Makes this `base` with other versions: those are installed; all else, being gigabytes, is linked."""
        self.create(base.python, DISK_GB_OLDEST, "--without-pip")
        write(self.file("requirements.lock"), lock)
        pip = [base.python, "-m", "pip", "--python", self.python, "install", "--no-input", "--no-compile"]
        pip += ["--progress-bar=off", "-c", self.file("requirements.lock")]
        names = [name for name in names_in(lock) if name != "opencv-python-headless"]
        run([*pip, "--no-deps", *names], self.file("packages.log"))
        for folder in ("", "lib", "include", "share"):
            link_missing(os.path.join(base.venv, folder), os.path.join(self.venv, folder))
        link_missing(base.site(), self.site(), leave=replaced(base.site(), set(os.listdir(self.site()))))
        adopt_commands(os.path.join(base.venv, "bin"), os.path.join(self.venv, "bin"), self.python)
        # Last, because NumPy and others that it imports are there now.
        self.do_without_desktop(pip)

    def imports(self, name: str) -> bool:
        command = [self.python, "-c", "import " + name]
        return subprocess.call(command, stderr=subprocess.DEVNULL, env=clean_environment()) == 0

    def generate(self, packages: List[str], compiler: List[str]) -> None:
        compiler = compiler or find_compiler()
        for package in packages:
            build = self.file("build")
            remove(build)
            command = [self.python, GENERATOR, package, "--build", build, "--prefix", self.venv]
            run([*command, "--cxx", " ".join(compiler)], self.file("generate.log"))
            remove(build)

    def install_modules(self, folders: List[str]) -> None:
        for folder in folders:
            target = os.path.join(self.site(), os.path.basename(folder))
            remove(target + ".new")
            shutil.copytree(folder, target + ".new", ignore=shutil.ignore_patterns("__pycache__"))
            remove(target)
            os.rename(target + ".new", target)
        shutil.copy(LIBRARIES, self.site())
        # .pth files are read in the order of their names, and `_` sorts before the wheels' ros_wheels_bootstrapper.pth.
        write(
            os.path.join(self.site(), "_rscmd_libraries.pth"), "import rscmd_libraries; rscmd_libraries.start_again()\n"
        )
        write(os.path.join(self.site(), "rscmd_checkout.pth"), ROOT + "\n")


def distributions() -> List[str]:
    """The ROS 2 distributions that there are versions for, Jazzy first."""
    return [JAZZY] + [name.split(".")[-2] for name in sorted(glob.glob(lock_of_other("*"))) if name != OLDEST]


def lock_of_other(ros: str) -> str:
    return os.path.join(ROOT, "requirements.{}.lock".format(ros))


def names_in(lock: str) -> List[str]:
    """Names of the packages in the text of a lock file, in their order, each once."""
    found = re.findall(r"^([A-Za-z0-9._-]+)==", lock, re.MULTILINE)
    return sorted(set(found), key=found.index)


def packages_of(ros: str, oldest: bool = False) -> Tuple[str, str]:
    """What pip is asked for, and every version, as the texts of two files."""
    requirements, lock = read(REQUIREMENTS), read(LOCK)
    if oldest:
        other = names_in(read(OLDEST))
        kept = [line for line in lock.splitlines(True) if line.partition("==")[0] not in other]
        lock = "".join(kept) + read(OLDEST)
    if ros == JAZZY:
        return requirements, lock
    common = [line for line in lock.splitlines(True) if not line.startswith("ros-")]
    return requirements.replace("ros-" + JAZZY, "ros-" + ros), "".join(common) + read(lock_of_other(ros))


def read(path: str) -> str:
    """The text of a file, empty if there is none."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except FileNotFoundError:
        return ""


def write(path: str, text: str) -> None:
    """Writes a file whole or not at all."""
    with open(path + ".new", "w") as file:
        file.write(text)
    os.replace(path + ".new", path)


def remove(path: str) -> None:
    if os.path.isdir(path) and not os.path.islink(path):
        shutil.rmtree(path)
    elif os.path.lexists(path):
        os.remove(path)


def contents(folder: str) -> List[str]:
    """Names and texts of everything in a folder, in a fixed order."""
    paths = sorted(os.path.join(top, name) for top, _, names in os.walk(folder) for name in names)
    paths = [path for path in paths if "__pycache__" not in path]
    return [os.path.relpath(path, ROOT) for path in paths] + [read(path) for path in paths]


def forget_broken(site: str) -> None:
    """Takes half-installed packages off the books, so that pip puts them in again.

    pip writes a package's metadata before all its files are there; killed in between, it would believe in it for ever.
    """
    for info in glob.glob(os.path.join(site, "*.dist-info")):
        record = os.path.join(info, "RECORD")
        whole = os.path.isfile(record) and os.path.isfile(os.path.join(info, "INSTALLER"))
        if whole:
            with open(record, newline="", encoding="utf-8") as file:
                rows = [row for row in csv.reader(file) if len(row) == 3]
            for name, _, size in rows:
                path = os.path.join(site, name)
                if not os.path.isfile(path) or (size and os.path.getsize(path) != int(size)):
                    whole = name.endswith(".pyc")
                    if not whole:
                        break
        if not whole:
            remove(info)
    # What pip moved aside to replace it.
    for leftover in glob.glob(os.path.join(site, "~*")):
        remove(leftover)


def link_missing(source: str, target: str, leave: Iterable[str] = ()) -> None:
    """Links into a folder what another has, unless it is there or to be left out."""
    if os.path.isdir(source):
        os.makedirs(target, exist_ok=True)
        for name in sorted(set(os.listdir(source)) - set(leave) - {"__pycache__"} - set(os.listdir(target))):
            os.symlink(os.path.join(source, name), os.path.join(target, name))


def replaced(site: str, there: Set[str]) -> Set[str]:
    """Names in a site-packages of all packages that bring a module which is `there`, in another site-packages."""
    gone: Set[str] = set()
    for record in glob.glob(os.path.join(site, "*.dist-info", "RECORD")):
        with open(record, newline="", encoding="utf-8") as file:
            names = {row[0].split("/")[0] for row in csv.reader(file) if row} - {"..", "__pycache__"}
        if names & there:
            gone |= names
    return gone


def adopt_commands(source: str, target: str, python: str) -> None:
    """Has the commands of another environment in this one too; those in Python are run by this one's."""
    for name in sorted(set(os.listdir(source)) - set(os.listdir(target))):
        if os.path.isdir(os.path.join(source, name)):  # what Python compiled of em.py, a command that is imported too
            continue
        with open(os.path.join(source, name), "rb") as file:
            first, rest = file.readline(), file.read()
        if re.match(rb"#!.*/python[0-9.]*\s*$", first):
            with open(os.path.join(target, name), "wb") as file:
                file.write(b"#!" + os.fsencode(python) + b"\n" + rest)
            shutil.copymode(os.path.join(source, name), os.path.join(target, name))
        else:
            os.symlink(os.path.join(source, name), os.path.join(target, name))


def make(venv: str, ros: str) -> None:
    """Brings the environment up to date; raises SetupError with one line where that cannot be."""
    began, environment = time.time(), Environment(venv)
    # An environment keeps the Python it was made with, whichever comes first on PATH today.
    series = environment.series()
    python: Dict[str, Any] = {"series": series, "name": f"Python {series}"}
    made = series is not None and read(environment.file("venv")) == environment.key_with([venv, str(series)])
    if not made:
        remove(environment.file("venv"))
    chooses = not made or os.environ.get("PYTHON")
    if chooses:
        check_machine()
    folders = [path.rstrip("/") for path in sorted(glob.glob(os.path.join(UNDERLAY, "*", "")))]
    messages = [folder for folder in folders if os.path.isdir(os.path.join(folder, "msg"))]
    modules = [folder for folder in folders if os.path.isfile(os.path.join(folder, "__init__.py"))]
    # Asked for now, so that nobody waits for the packages to hear of it.
    compiles = messages and not read(environment.file("messages"))
    python, compiler = together(find_python if chooses else lambda: python, find_compiler if compiles else list)

    title = "making {} with {}".format(venv, python["name"])
    environment.step(
        "venv", title, [venv, str(python["series"])], lambda: environment.create(python["executable"], DISK_GB_CPU)
    )
    packages = packages_of(ros)
    environment.step("packages", "installing packages", packages, lambda: environment.install_packages(*packages))
    if messages:
        title = "generating " + ", ".join(map(os.path.basename, messages))
        inputs = [text for folder in messages for text in contents(folder)] + [read(GENERATOR)]
        environment.step("messages", title, inputs, lambda: environment.generate(messages, compiler))
    title = "installing " + ", ".join(map(os.path.basename, modules))
    inputs = [text for folder in modules for text in contents(folder)] + [ROOT, read(LIBRARIES)]
    environment.step("modules", title, inputs, lambda: environment.install_modules(modules))
    environment.say_ready(began)


def make_oldest(venv: str, base: str) -> None:
    """Brings the environment with the oldest versions up to date with `base`, which is; raises SetupError."""
    began, environment, lock = time.time(), Environment(venv), read(OLDEST)
    inputs = [venv, base, read(Environment(base).file("modules")), lock]
    title = "making {} with the oldest versions".format(venv)
    environment.step("oldest", title, inputs, lambda: environment.install_oldest(Environment(base), lock))
    environment.say_ready(began)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--ros", default=JAZZY, help="one of {} (default: %(default)s)".format(", ".join(distributions()))
    )
    parser.add_argument("--oldest", action="store_true", help="make DIR.oldest too, with the oldest versions")
    parser.add_argument(
        "--venv", help="the folder to make (default: .venv of this checkout; .venv.ROS for another ROS)"
    )
    args = parser.parse_args()
    venv = os.path.abspath(args.venv or os.path.join(ROOT, ".venv" if args.ros == JAZZY else ".venv." + args.ros))
    lock = os.open(ROOT, os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            say("another setup is at work in this checkout, waiting for it")
            fcntl.flock(lock, fcntl.LOCK_EX)
        if args.ros not in distributions():
            raise SetupError("no versions for ROS={}; there are {}".format(args.ros, ", ".join(distributions())))
        make(venv, args.ros)
        if args.oldest:
            make_oldest(venv + ".oldest", venv)
    except (SetupError, OSError) as error:
        sys.exit(f"setup: error: {error}")
    except KeyboardInterrupt:
        sys.exit("setup: interrupted; run it again and it goes on from here")


if __name__ == "__main__":
    main()
