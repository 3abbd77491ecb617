"""What Slicer's build and the Extensions Index expect of the files, checked without Slicer."""

import ast
import importlib.util
import json
import re
import struct
import sys
import types
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parents[2]
MODULES = ("MITSGAN", "MITSGANTraining")
TRAINING = ROOT / "MITSGANTraining"
PACKAGES = {"MITSGANLib": ROOT / "MITSGAN", "MITSGANTrainingLib": ROOT / "MITSGANTraining"}

# An extension must load with these alone.
FILE_SCOPE = {*sys.stdlib_module_names, "numpy", "vtk", "SimpleITK", "slicer", "qt", "ctk"}
# These come with Slicer 5.12, and torch with torchvision from the PyTorch extension.
PROVIDED = {*FILE_SCOPE, "scipy", "pydicom", "highdicom", "PIL", "torch", "torchvision", "PyTorchUtils", "SampleData"}
DISTRIBUTIONS = {"skimage": "scikit-image"}

# The categories of the Extensions Index (scripts/check_description_files.py) that suit this extension.
CATEGORIES = {"Informatics", "Image Synthesis", "Utilities", "DICOM"}


def tree(path):
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def python_files(folder):
    return sorted(path for path in folder.rglob("*.py") if "__pycache__" not in path.parts)


def cmake_list(module, name):
    text = (ROOT / module / "CMakeLists.txt").read_text(encoding="utf-8")
    body = re.search(rf"set\({name}\s(.*?)\)", text, re.DOTALL).group(1)
    return [entry.replace("${MODULE_NAME}", module) for entry in body.split()]


def cmake_settings():
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    return dict(re.findall(r'^set\((EXTENSION_\w+) "([^"\n]+)"\)$', text, re.MULTILINE))


def catalog_entry():
    return json.loads((ROOT / "MITSGAN.json").read_text(encoding="utf-8"))


# Imports


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def is_function(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)


def is_optional(node):
    return isinstance(node, ast.Try) and any(
        handler.type is not None and re.search(r"\b(ImportError|ModuleNotFoundError)\b", ast.unparse(handler.type))
        for handler in node.handlers
    )


def imports(node, file_scope):
    """Import statements below ``node``: those run on import, or all that a feature needs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        elif is_type_checking(child):
            yield from (found for branch in child.orelse for found in imports(branch, file_scope))
        elif not (is_function(child) if file_scope else is_optional(child)):
            yield from imports(child, file_scope)


def imported_modules(path, package, file_scope):
    """Dotted names that a file imports. ``from a import b`` gives both a and a.b: b may be a module."""
    for statement in imports(tree(path), file_scope):
        if isinstance(statement, ast.Import):
            yield from (alias.name for alias in statement.names)
            continue
        base = statement.module or ""
        if statement.level:
            parents = package.split(".")[: len(package.split(".")) - statement.level + 1]
            base = ".".join([*parents, base] if base else parents)
        yield base
        yield from (f"{base}.{alias.name}" for alias in statement.names)


def library_file(name):
    """File of a module of our libraries, or None for a name inside a module and for foreign modules."""
    top = name.partition(".")[0]
    if top not in PACKAGES:
        return None
    path = PACKAGES[top].joinpath(*name.split("."))
    if (path / "__init__.py").exists():
        return path / "__init__.py"
    return path.with_suffix(".py") if path.with_suffix(".py").exists() else None


def package_of(path, root):
    return ".".join(path.relative_to(root).parts[:-1])


def loaded_with(module, path=None):
    """All our files that run when Slicer loads a module, or another file of it, each with the dotted names that it
    imports at file scope."""
    pending, seen = [path or ROOT / module / f"{module}.py"], {}
    while pending:
        path = pending.pop()
        if path in seen:
            continue
        root = next((root for top, root in PACKAGES.items() if root / top in path.parents), ROOT / module)
        seen[path] = list(imported_modules(path, package_of(path, root), file_scope=True))
        for name in seen[path]:
            parts = name.split(".")
            prefixes = (".".join(parts[: count + 1]) for count in range(len(parts)))
            pending += filter(None, map(library_file, prefixes))
    return seen


@pytest.mark.parametrize("module", MODULES)
def test_module_loads_without_installed_packages(module):
    loaded = loaded_with(module)
    foreign = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, names in loaded.items()
        for name in names
        if name.partition(".")[0] not in {*FILE_SCOPE, *PACKAGES}
    }
    assert not foreign
    if module == "MITSGAN":
        assert PACKAGES["MITSGANLib"] / "MITSGANLib" / "slicer_bridge" / "volumes.py" in loaded


def test_only_the_bridge_knows_slicer():
    users = {
        path.relative_to(ROOT / "MITSGAN" / "MITSGANLib").parts[0]
        for path in python_files(ROOT / "MITSGAN" / "MITSGANLib")
        for statement in imports(tree(path), file_scope=False)
        for name in (
            [alias.name for alias in statement.names] if isinstance(statement, ast.Import) else [statement.module or ""]
        )
        if name.partition(".")[0] in {"slicer", "qt", "ctk"}
    }
    assert users == {"slicer_bridge"}


@pytest.mark.slow
def test_requirements_hold_what_slicer_lacks():
    lines = (ROOT / "MITSGAN" / "Resources" / "requirements.txt").read_text(encoding="utf-8").splitlines()
    required = {line.strip() for line in lines if line.strip() and not line.startswith("#")}
    assert all(re.fullmatch(r"[A-Za-z0-9-]+", name) for name in required), "requirements must not be pinned"
    needed = {
        name.partition(".")[0]
        for module in MODULES
        for path in python_files(ROOT / module)
        for name in imported_modules(path, package_of(path, ROOT / module), file_scope=False)
    }
    scripts = {path.stem for path in TRAINING.glob("*.py")}
    needed = {DISTRIBUTIONS.get(name, name) for name in needed - PROVIDED - set(PACKAGES) - scripts}
    assert needed <= required
    assert not required & {"torch", "torchvision", "SimpleITK", "numpy"}


# CMake and catalog


@pytest.mark.parametrize("module", MODULES)
def test_every_script_is_packaged(module):
    listed = cmake_list(module, "MODULE_PYTHON_SCRIPTS")
    present = [path.relative_to(ROOT / module).as_posix() for path in python_files(ROOT / module)]
    assert sorted(listed) == sorted(present)


@pytest.mark.parametrize("module", MODULES)
def test_every_resource_is_packaged(module):
    listed = cmake_list(module, "MODULE_PYTHON_RESOURCES")
    files = (path for path in (ROOT / module / "Resources").rglob("*") if path.is_file())
    assert sorted(listed) == sorted(path.relative_to(ROOT / module).as_posix() for path in files)


@pytest.mark.parametrize("module", MODULES)
def test_module_is_built_and_tested(module):
    text = (ROOT / module / "CMakeLists.txt").read_text(encoding="utf-8")
    assert f"set(MODULE_NAME {module})" in text
    for line in ("WITH_GENERIC_TESTS", "slicer_add_python_unittest(SCRIPT ${MODULE_NAME}.py)"):
        assert line in text
    assert f"add_subdirectory({module})" in (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")


def test_the_command_line_loads_without_installed_packages():
    """The training module's panel asks it for its commands before any package was installed."""
    loaded = loaded_with("MITSGANTraining", TRAINING / "MITSGANTrainingLib" / "commandline.py")
    foreign = {
        f"{path.relative_to(ROOT)}: {name}"
        for path, names in loaded.items()
        for name in names
        if name.partition(".")[0] not in {*FILE_SCOPE, *PACKAGES}
    }
    assert len(loaded) > 20
    assert not foreign


@pytest.mark.parametrize("script", sorted({path.stem for path in TRAINING.glob("*.py")} - {*MODULES}))
def test_what_lies_beside_a_module_is_quiet_when_slicer_starts(script, capsys, monkeypatch):
    """Slicer runs every Python file there, and complains of those without a class of the file's name."""
    spec = importlib.util.spec_from_file_location(script, TRAINING / f"{script}.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, script, module)
    before = set(sys.modules)
    spec.loader.exec_module(module)
    parent = types.SimpleNamespace()
    getattr(module, script)(parent)
    assert parent.hidden, "found by no search for modules"
    assert parent.title == f"MITSGAN command: {script}", "the settings list hidden modules, too, by their titles"
    assert not hasattr(module, f"{script}Widget")
    assert set(sys.modules) == before, "start-up imports nothing for it"
    assert capsys.readouterr() == ("", "")


def test_extension_metadata():
    settings = cmake_settings()
    assert set(settings) == {
        "EXTENSION_HOMEPAGE",
        "EXTENSION_CONTRIBUTORS",
        "EXTENSION_DESCRIPTION",
        "EXTENSION_ICONURL",
        "EXTENSION_SCREENSHOTURLS",
        "EXTENSION_DEPENDS",
    }
    text = (ROOT / "CMakeLists.txt").read_text(encoding="utf-8")
    project = re.search(r"^project\((\w+)\)$", text, re.MULTILINE).group(1)
    assert (ROOT / f"{project}.json").exists()
    for name in ("EXTENSION_ICONURL", "EXTENSION_SCREENSHOTURLS"):
        assert re.fullmatch(r"https://\S+\.png", settings[name])


def test_catalog_entry_follows_schema_1_0_1():
    entry = catalog_entry()
    assert entry["$schema"].endswith("slicer-extension-catalog-entry-schema-v1.0.1.json#")
    types = {
        "$schema": str,
        "category": str,
        "scm_url": str,
        "scm_revision": str,
        "scm_type": str,
        "build_dependencies": list,
        "build_subdirectory": str,
        "enabled": bool,
        "tier": int,
    }
    assert {"$schema", "category", "scm_url"} <= set(entry) <= set(types)
    assert all(isinstance(value, types[key]) for key, value in entry.items())
    assert entry["category"] in CATEGORIES
    assert entry["tier"] in range(1, 6)
    assert entry["scm_url"].rpartition("/")[2].startswith("Slicer")
    assert b"\r" not in (ROOT / "MITSGAN.json").read_bytes()


def test_catalog_entry_agrees_with_cmake():
    settings = cmake_settings()
    assert catalog_entry()["scm_url"] == settings["EXTENSION_HOMEPAGE"]
    assert catalog_entry()["build_dependencies"] == settings["EXTENSION_DEPENDS"].split()


def test_license_is_apache_2():
    text = (ROOT / "LICENSE.txt").read_text(encoding="utf-8")
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert "Copyright 2026 MITSGAN contributors" in text


@pytest.mark.parametrize(
    "icon",
    ["MITSGAN.png", *(f"{module}/Resources/Icons/{module}.png" for module in MODULES)],
)
def test_icon_is_128_rgba(icon):
    content = (ROOT / icon).read_bytes()
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    width, height, depth, color_type = struct.unpack(">IIBB", content[16:26])
    assert (width, height, depth, color_type) == (128, 128, 8, 6)


# Panel


def panel(module):
    return ElementTree.parse(ROOT / module / "Resources" / "UI" / f"{module}.ui").getroot()


def widgets(module):
    return {widget.get("name"): widget.get("class") for widget in panel(module).iter("widget")}


@pytest.mark.parametrize(("module", "least"), [("MITSGAN", 50), ("MITSGANTraining", 5)])
def test_panel_names_every_widget_the_code_uses(module, least):
    sections = PACKAGES["MITSGANLib"] / "MITSGANLib" / "slicer_bridge" / "panel"
    used = {
        node.attr
        for path in (python_files(sections) if module == "MITSGAN" else [ROOT / module / f"{module}.py"])
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute) and re.search(r"(^|\W)_?ui$", ast.unparse(node.value))
    }
    assert len(used) > least
    assert used <= set(widgets(module))


@pytest.mark.parametrize("module", MODULES)
def test_panel_is_bound_to_parameters_of_the_node(module):
    code = tree(ROOT / module / f"{module}.py")
    node = next(item for item in code.body if getattr(item, "name", "") == f"{module}ParameterNode")
    parameters = {item.target.id for item in node.body if isinstance(item, ast.AnnAssign)}
    properties = panel(module).iter("property")
    bound = [item.findtext("string") for item in properties if item.get("name") == "SlicerParameterName"]
    assert len(bound) == len(set(bound)) > 0
    assert set(bound) <= parameters


@pytest.mark.parametrize("module", MODULES)
def test_panel_declares_its_custom_widgets_and_gives_them_the_scene(module):
    root = panel(module)
    custom = {name: class_ for name, class_ in widgets(module).items() if re.match(r"ctk|qMRML|qSlicer", class_)}
    assert {item.findtext("class") for item in root.iter("customwidget")} == set(custom.values())
    top = root.find("widget").get("name")
    need_scene = {name for name, class_ in custom.items() if not class_.startswith("ctk")} - {top}
    connected = {
        item.findtext("receiver")
        for item in root.iter("connection")
        if (item.findtext("sender"), item.findtext("signal")) == (top, "mrmlSceneChanged(vtkMRMLScene*)")
        and item.findtext("slot") == "setMRMLScene(vtkMRMLScene*)"
    }
    assert connected == need_scene


@pytest.mark.parametrize("module", MODULES)
def test_texts_are_translatable(module):
    """A text that is put together before ``_()`` sees it has no entry in any catalog."""
    files = [ROOT / module / f"{module}.py", *python_files(ROOT / module / "MITSGANLib" / "slicer_bridge")]
    calls = [
        node
        for path in files
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "_"
    ]
    assert calls
    for call in calls:
        assert len(call.args) == 1
        assert isinstance(call.args[0], ast.Constant)
        assert isinstance(call.args[0].value, str)


SHOP_WINDOW = (
    *(f"{module}/{module}.py" for module in MODULES),
    *(f"docs/{reader}.md" for reader in ("radiologist", "hospital-it", "researcher")),
    "CMakeLists.txt",
    "MITSGANTraining/MITSGANTrainingLib/commandline.py",
    "pyproject.toml",
)


def as_one_line(path: Path) -> str:
    """The text of a file; a string that goes on in the next line is whole, in Python and in TOML."""
    return " ".join(path.read_text(encoding="utf-8").replace("\\\n", "\n").split()).replace('" "', "")


@pytest.mark.parametrize("name", SHOP_WINDOW)
def test_all_promise_what_the_readme_does(name):
    """The first sentence of the README, word for word."""
    promise = "MITSGAN helps" + as_one_line(ROOT / "README.md").partition("MITSGAN helps")[2].partition(".")[0] + "."
    assert "does not stop the attack" in promise
    assert promise in as_one_line(ROOT / name)
