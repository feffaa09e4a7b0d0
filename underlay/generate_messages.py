"""Generates a message package with rosidl, compiles it and installs it into an environment of ROS wheels.

    .venv/bin/python underlay/generate_messages.py PACKAGE_FOLDER --build DIR --prefix DIR --cxx COMMAND

The generators are the ones every ROS distribution uses; they come with the wheels. Left out is their CMake: Python
needs the C structures, the C type supports of Fast DDS and the conversion modules, and those are a few dozen compiler
calls. Nothing is made for C++ or for other DDS vendors, which this environment does not have.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import numpy
from rosidl_cli.command.hash.api import generate_type_hashes
from rosidl_cli.command.translate.api import translate
from rosidl_generator_c.cli import GenerateC
from rosidl_generator_py.cli import GeneratePython
from rosidl_typesupport_c.cli import GenerateCTypesupport
from rosidl_typesupport_fastrtps_c.cli import GenerateFastRTPSCTypesupport
from rosidl_typesupport_introspection_c.cli import GenerateIntrospectionCTypesupport

FLAGS = ["-O1", "-fPIC", "-w"]
# Asked for here, in one thread: sysconfig's first answers, when several threads ask at once, can be None.
PYTHON_HEADERS = Path(sysconfig.get_config_var("INCLUDEPY"))
# What rmw_fastrtps_cpp asks for: the first to write and read messages, the second to describe their type to others.
FAST, DESCRIBED = "rosidl_typesupport_fastrtps_c", "rosidl_typesupport_introspection_c"
KINDS = ("c", "fastrtps", "introspection", "typesupport", "python")


class Package:
    """A message package on its way from `.msg` files to the environment.

    Args:
        source: folder with `package.xml` and `msg/*.msg`, `srv/*.srv` or both.
        build: folder for everything intermediate; must not exist.
        prefix: root of the environment, with `lib`, `include` and `share` of the packages this one depends on.
        compiler: command of a C++ compiler, which compiles the C sources too.
    """

    def __init__(self, source: Path, build: Path, prefix: Path, compiler: Sequence[str]) -> None:
        self.source, self.build, self.prefix, self.compiler = source, build, prefix, list(compiler)
        manifest = ElementTree.parse(source / "package.xml").getroot()
        self.name = manifest.findtext("name") or source.name
        self.interfaces = [kind for kind in ("msg", "srv") if (source / kind).is_dir()]
        implied = ["service_msgs"] if "srv" in self.interfaces else []  # rosidl makes an event message of each service
        self.depends = self.closure([element.text or "" for element in manifest.findall("depend")] + implied)

    def closure(self, names: list[str]) -> list[str]:
        """The interface packages among these and those they build on, by what they say at run time."""
        index = self.prefix / "share" / "ament_index" / "resource_index"
        found: list[str] = []
        while names:
            name = names.pop()
            if name not in found and (index / "rosidl_interfaces" / name).is_file():
                found.append(name)
                names += (index / "package_run_dependencies" / name).read_text().split(";")
        return sorted(found)

    def generate(self) -> None:
        """Writes idl, type descriptions with their hashes, C, C++ and Python sources below the build folder."""
        include = [str(self.prefix / "share" / name) for name in self.depends]
        files = [
            f"{self.source}:{kind}/{path.name}"
            for kind in self.interfaces
            for path in sorted((self.source / kind).glob(f"*.{kind}"))
        ]
        idl = translate(
            package_name=self.name,
            interface_files=files,
            include_paths=include,
            output_format="idl",
            output_path=self.build / "share",
        )
        hashes = generate_type_hashes(
            package_name=self.name, interface_files=idl, include_paths=include, output_path=self.build / "share"
        )
        out = {kind: self.build / kind / self.name for kind in KINDS}
        GenerateC("c").generate(self.name, idl, include, out["c"], hashes)
        implementations = [FAST, DESCRIBED]
        support = GenerateCTypesupport("c", typesupport_implementations=implementations)
        support.generate(self.name, idl, include, out["typesupport"])
        GenerateFastRTPSCTypesupport("fastrtps_c").generate(self.name, idl, include, out["fastrtps"])
        GenerateIntrospectionCTypesupport("introspection_c").generate(self.name, idl, include, out["introspection"])
        python = GeneratePython("py", typesupport_implementations=["rosidl_typesupport_c", *implementations])
        python.generate(self.name, idl, include, out["python"])
        (out["python"] / "__init__.py").touch()
        print(f"generated {len(files)} interfaces of {self.name}", flush=True)

    def compile(self) -> None:
        """Builds the shared libraries, under the names that rosidl's CMake gives them."""
        # In this order each may call the ones before it.
        suffixes = {
            "rosidl_generator_c": ("c", "detail"),
            FAST: ("fastrtps", "detail"),
            DESCRIBED: ("introspection", "detail"),
            "rosidl_typesupport_c": ("typesupport", ""),
            "rosidl_generator_py": ("python", ""),
        }
        python = self.build / "python" / self.name
        sources: dict[str, list[Path]] = {}
        for suffix, (step, inner) in suffixes.items():
            folders = [self.build / step / self.name / kind / inner for kind in self.interfaces]
            sources[suffix] = [file for folder in folders for file in sorted(folder.glob("*.c")) or [self.join(folder)]]
        supports = ("rosidl_typesupport_c", FAST, DESCRIBED)
        extensions = {name: python / f"_{self.name}_s.ep.{name}.c" for name in supports}
        every = [source for group in sources.values() for source in group] + list(extensions.values())
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for done, _ in enumerate(pool.map(self.compile_one, every), 1):
                print(f"compiled {done} of {len(every)} files", flush=True)
        (self.build / "lib").mkdir()
        earlier: list[str] = []
        for suffix, group in sources.items():
            needed = [f"{name}__{suffix}" for name in self.depends] + ["rosidl_runtime_c", "rcutils"]
            needed += [] if suffix in ("rosidl_generator_c", "rosidl_generator_py") else [suffix]
            needed += ["rosidl_typesupport_fastrtps_cpp", "fastcdr"] if suffix == FAST else []
            self.link(self.build / "lib" / f"lib{self.name}__{suffix}.so", group, earlier + needed)
            earlier.append(f"{self.name}__{suffix}")
        for name, source in extensions.items():
            self.link(python / f"{self.name}_s__{name}.so", [source], [*earlier, "rosidl_runtime_c", name])

    @staticmethod
    def join(folder: Path) -> Path:
        """One C++ source that includes the others: their headers take longer to read than they themselves."""
        lines = [f'#include "{path}"' for path in sorted(folder.glob("*.cpp"))]
        joined = folder / "all.cpp"
        joined.write_text("\n".join(lines) + "\n")
        return joined

    def compile_one(self, source: Path) -> None:
        packages = [path for path in (self.prefix / "include").iterdir() if path.is_dir()]
        folders = [self.build / kind for kind in KINDS]
        folders += [self.prefix / "include", *packages, PYTHON_HEADERS]
        folders.append(Path(numpy.get_include()))
        language = ["-x", "c", "-std=gnu11"] if source.suffix == ".c" else ["-x", "c++", "-std=c++17"]
        include = [f"-I{folder}" for folder in folders]
        self.call([*self.compiler, *FLAGS, *language, *include, "-c", str(source), "-o", f"{source}.o"])

    def link(self, target: Path, sources: list[Path], libraries: list[str]) -> None:
        """Links a shared library that finds the others beside it."""
        objects = [f"{source}.o" for source in sources]
        places = [f"-L{self.build / 'lib'}", f"-L{self.prefix / 'lib'}", "-Wl,-rpath,$ORIGIN"]
        needed = ["-Wl,--no-as-needed", *(f"-l{name}" for name in libraries)]
        self.call([*self.compiler, "-shared", *objects, *places, *needed, "-o", str(target)])

    @staticmethod
    def call(command: list[str]) -> None:
        result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if result.returncode != 0:
            raise RuntimeError(f"{result.stdout}\nerror: the compiler failed: {shlex.join(command)}")

    def install(self) -> None:
        """Puts everything into the environment, each file whole or not at all."""
        share = self.prefix / "share"
        for library in (self.build / "lib").glob("*.so"):
            put(library, self.prefix / "lib" / library.name)
        python = self.build / "python" / self.name
        for leftover in [*python.rglob("*.c"), *python.rglob("*.o")]:
            leftover.unlink()
        put(python, Path(sysconfig.get_path("purelib")) / self.name)
        for kind in self.interfaces:
            shutil.copytree(self.source / kind, self.build / "share" / kind, dirs_exist_ok=True)
        shutil.copy(self.source / "package.xml", self.build / "share")
        folders = [self.build / "share" / kind for kind in self.interfaces]
        interfaces = sorted(path.relative_to(self.build / "share") for folder in folders for path in folder.iterdir())
        put(self.build / "share", share / self.name)
        markers = {
            "packages": "",
            "rosidl_interfaces": "\n".join(str(path) for path in interfaces if path.suffix != ".json"),
            "package_run_dependencies": ";".join([*self.depends, "rosidl_default_runtime"]),
        }
        for kind, text in markers.items():
            (self.build / "marker").write_text(text)
            put(self.build / "marker", share / "ament_index" / "resource_index" / kind / self.name)


def put(source: Path, target: Path) -> None:
    """Copies a file or folder to its place by way of a neighbour, so that no half of it is ever found there."""
    aside = target.with_name(f".{target.name}.new")
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.rmtree(aside, ignore_errors=True)
        shutil.copytree(source, aside)
        shutil.rmtree(target, ignore_errors=True)
    else:
        shutil.copy(source, aside)
    os.replace(aside, target)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("package", type=Path, help="folder with package.xml and msg/*.msg, srv/*.srv or both")
    parser.add_argument("--build", type=Path, required=True, help="folder for what lies in between; must not exist")
    parser.add_argument("--prefix", type=Path, default=Path(sys.prefix), help="root of the environment to install into")
    parser.add_argument("--cxx", default="c++", help="command of the C++ compiler (default: %(default)s)")
    args = parser.parse_args()
    # Where the generators look for each other's templates.
    os.environ["AMENT_PREFIX_PATH"] = str(args.prefix.resolve())
    package = Package(args.package.resolve(), args.build.resolve(), args.prefix.resolve(), shlex.split(args.cxx))
    package.generate()
    package.compile()
    package.install()


if __name__ == "__main__":
    main()
