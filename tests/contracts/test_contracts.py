"""What the package promises as a whole: its public names, docstrings, metadata, and how it is written."""

import ast
import email
import inspect
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from hatchling.build import prepare_metadata_for_build_wheel
from readme_renderer import markdown

import diffusers_cfld

ROOT = Path(__file__).parents[2]
SOURCES = sorted((ROOT / "src").rglob("*.py"))
PUBLIC = {
    "Appearance",
    "AppearanceEncoder",
    "AppearanceEncoderOutput",
    "CFLDInpaintPipeline",
    "CFLDPipeline",
    "CFLDPipelineOutput",
    "HybridGranularityAttnProcessor",
    "Keypoints",
    "PerceptionRefinedDecoder",
    "PerceptionRefinedDecoderOutput",
    "PoseAdapter",
    "PoseAdapterOutput",
    "PoseFeatures",
    "PoseProcessor",
    "SourceImageProcessor",
    "SwinImageEncoder",
    "SwinImageEncoderOutput",
    "__version__",
    "align_pose",
    "fit_keypoints",
    "fit_photo",
    "hybrid_granularity_attention",
    "query_bias_to_tokens",
    "render_pose_map",
}


def test_the_public_names_are_these():
    assert set(diffusers_cfld.__all__) == PUBLIC
    assert set(dir(diffusers_cfld)) == PUBLIC
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = diffusers_cfld.nothing


@pytest.mark.parametrize("name", sorted(PUBLIC - {"__version__"}))
def test_signatures_and_docstrings_name_the_same_arguments(name):
    value = getattr(diffusers_cfld, name)
    assert value.__doc__
    documented = [(value, value.__doc__)]
    if inspect.isclass(value):
        own = [item for key, item in vars(value).items() if not key.startswith("_") or key == "__call__"]
        methods = [item.__func__ if isinstance(item, classmethod) else item for item in own]
        documented += [(method, method.__doc__) for method in methods if inspect.isfunction(method)]
        documented = [item for item in documented if item[0].__module__.startswith("diffusers_cfld")]
    for item, docstring in documented:
        parameters = [
            parameter.name
            for parameter in inspect.signature(item).parameters.values()
            if parameter.name not in ("self", "cls")
        ]
        assert docstring, item
        for parameter in parameters:
            assert re.search(rf"^\s+\*{{0,2}}{parameter}:", docstring, re.M), f"{item} does not document {parameter}"


@pytest.mark.parametrize(
    "program",
    [
        "import diffusers_cfld",
        "from diffusers_cfld.cli import main; main(['--help'])",
        "from diffusers_cfld.cli import main; main(['generate', '--help'])",
    ],
)
def test_importing_the_package_and_asking_for_help_import_no_library(program):
    libraries = ["torch", "diffusers", "transformers", "timm", "numpy", "PIL", "cv2", "torchvision"]
    report = "import atexit, sys; atexit.register(lambda: print([n for n in sys.argv[1:] if n in sys.modules]))"
    command = [sys.executable, "-c", f"{report}; {program}", *libraries]
    environment = {"PYTHONPATH": str(ROOT / "src")}
    output = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout
    assert output.splitlines()[-1] == "[]"


def test_version_stands_in_citation_and_changelog():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == diffusers_cfld.__version__
    assert citation["cff-version"] == "1.2.0"
    heading = "Unreleased" if ".dev" in diffusers_cfld.__version__ else diffusers_cfld.__version__
    assert f"\n## [{heading}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_link_of_the_package_page_is_absolute_and_leads_to_a_file(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    metadata = email.message_from_bytes(
        (tmp_path / prepare_metadata_for_build_wheel(tmp_path) / "METADATA").read_bytes()
    )
    assert metadata["Description-Content-Type"] == "text/markdown"
    addresses = dict(address.split(", ") for address in metadata.get_all("Project-URL"))
    assert {"Repository", "Documentation", "Changelog", "Issues"} <= addresses.keys()
    page = markdown.render(metadata.get_payload())
    links = re.findall(r'(?:href|src)="(?!#)([^"]*)"', page) + [*addresses.values()]
    assert links
    assert len(re.findall("<img", page)) == (ROOT / "README.md").read_text().count("![")
    repository = addresses["Repository"].removeprefix("https://github.com/")
    ours = rf"https://(?:github\.com/{repository}/(?:blob|tree)|raw\.githubusercontent\.com/{repository})/main/(.*)"
    for link in links:
        assert link.startswith("https://"), link
        if match := re.fullmatch(ours, link):
            assert (ROOT / match[1]).exists(), link


def test_nothing_is_deep_copied_printed_or_evaluated():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                assert name not in ("copy.deepcopy", "deepcopy", "print", "eval", "exec"), f"{path}:{node.lineno}"


def test_pickles_are_only_read_with_weights_only():
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                assert any(
                    keyword.arg == "weights_only" and ast.unparse(keyword.value) == "True" for keyword in node.keywords
                ), f"{path}:{node.lineno}"


@pytest.mark.slow
def test_the_wheel_holds_the_typed_package_and_nothing_else(tmp_path):
    build = pytest.importorskip("build")
    assert build
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(tmp_path), str(ROOT)], check=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    small_model = "diffusers_cfld/small_model/pipeline/unet/diffusion_pytorch_model.fp16.safetensors"
    card = "diffusers_cfld/pipelines/model_card_template.md"
    marker, stub = "diffusers_cfld/py.typed", "diffusers_cfld/__init__.pyi"
    assert {marker, stub, "diffusers_cfld/small_model/examples/poses.json", small_model, card} <= {*names}
    assert {name.split("/")[0].split("-")[0] for name in names} == {"diffusers_cfld"}
    assert list(tmp_path.glob("*.tar.gz"))
