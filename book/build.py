"""Execute the chapters and build the website: `python book/build.py`. Prints the path of index.html.

Executions are cached, keyed on the notebooks (by jupyter-cache) and on the package and the lock file (by
this script, in the cache folder's name). A warning or a failed cell fails the build. Everything is
written below `_build/`.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

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


def main() -> int:
    """Build; the exit status of the build."""
    started = time.perf_counter()
    caches = BUILD / "cache"
    cache = caches / code_hash()
    caches.mkdir(parents=True, exist_ok=True)
    for other in caches.iterdir():
        if other != cache:
            shutil.rmtree(other)
    config = BUILD / "_config.yml"
    settings = (ROOT / "_config.yml").read_text()
    config.write_text(settings.replace("execute_notebooks: cache", f"execute_notebooks: cache\n  cache: {cache}"))
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
