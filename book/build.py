"""Execute the chapters and build the website: `python book/build.py`. Prints the path of index.html.

Executions are cached, keyed on the notebooks (by jupyter-cache) and on the package and the lock file (by this script,
in the cache folder's name). The frozen pages of `results/laptop/pages` are put into that cache, where they are found by
their code; one whose code is not the notebook's fails the build (`mechinterp.frozen`). A warning or a failed cell fails
the build. Everything is written below `_build/`. `python book/build.py --draft` executes nothing, to look at prose,
style, board and API: a minute, and chapters without their figures.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from jupyter_cache import get_cache

from mechinterp import frozen

ROOT = Path(__file__).resolve().parents[1]
BUILD = ROOT / "_build"


def code_hash() -> str:
    """Hash of everything but the notebooks that a page's numbers depend on."""
    digest = hashlib.sha256()
    for path in sorted([*(ROOT / "src").rglob("*"), ROOT / "requirements.lock"]):
        if path.is_file() and path.suffix not in (".pyc",):
            digest.update(str(path.relative_to(ROOT)).encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def add_frozen(cache: Path) -> None:
    """Put the executions of the frozen pages into the cache. `ValueError` for a page that is out of date."""
    store = get_cache(cache)
    for notebook in sorted((ROOT / "chapters").glob("*.ipynb")):
        changed = frozen.stale(notebook)
        store.cache_notebook_file(frozen.page_path(notebook), uri=str(notebook), check_validity=False, overwrite=True)
        print(f"frozen: {notebook.name}" + (f" ({changed})" if changed else ""))


def main() -> int:
    """Build; the exit status of the build."""
    started = time.perf_counter()
    os.chdir(ROOT)
    caches = BUILD / "cache"
    cache = caches / code_hash()
    caches.mkdir(parents=True, exist_ok=True)
    for other in caches.iterdir():
        if other != cache:
            shutil.rmtree(other)
    draft = "--draft" in sys.argv[1:]
    if not draft:
        try:
            add_frozen(cache)
        except ValueError as error:
            print(error, file=sys.stderr)
            return 1
    config = BUILD / "_config.yml"
    settings = (ROOT / "_config.yml").read_text()
    execution = '"off"' if draft else f"cache\n  cache: {cache}"
    config.write_text(settings.replace("execute_notebooks: cache", f"execute_notebooks: {execution}"))
    search = [str(ROOT / "book" / "_ext"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {
        "MECHINTERP_SITE": "1",
        "MECHINTERP_SCALE": os.environ.get("MECHINTERP_SCALE", "lab"),
        "MECHINTERP_RESULTS": os.environ.get("MECHINTERP_RESULTS", str(BUILD / "results")),
        "PYTHONPATH": os.pathsep.join(search),
        "PYTHONWARNINGS": "ignore",
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "1"),
        "TQDM_DISABLE": "1",
    }
    # The kernel must be this environment's Python, whatever kernels the user has installed.
    kernel = [sys.executable, "-m", "ipykernel", "install", "--prefix", str(BUILD / "kernel"), "--name", "python3"]
    subprocess.run(kernel, check=True, capture_output=True)
    environment["JUPYTER_PATH"] = str(BUILD / "kernel" / "share" / "jupyter")
    command = [str(Path(sys.executable).with_name("jupyter-book")), "build", str(ROOT)]
    command += ["--config", str(config), "-n", "-W", "--keep-going"]
    status = subprocess.run(command, env=environment, cwd=ROOT, check=False).returncode
    index = BUILD / "html" / "index.html"
    reports = sorted((BUILD / "html" / "reports").rglob("*.err.log")) if status else []
    for report in reports:
        print(f"--- {report.relative_to(ROOT)}\n{report.read_text()[-3000:]}", file=sys.stderr)
    if status or not index.is_file():
        print("the site was not built: see the warnings above", file=sys.stderr)
        return status or 1
    print(f"built in {time.perf_counter() - started:.0f} s\n{index}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
