"""The server: one page with its tabs, one queue, nothing asked of other hosts."""

from __future__ import annotations

import os
import shutil
import socket
import tempfile
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from invdiff.app.jobs import Jobs
from invdiff.app.limits import Limits
from invdiff.app.restoring import Restoration
from invdiff.checks import whole
from invdiff.errors import InvdiffError, InvdiffWarning

ASSETS = Path(__file__).parent / "assets"
_FOLDER = "invdiff-app-"
_KEPT = 200  # restorations whose files are kept


@dataclass(eq=False)
class Desk:
    """What the visitors of a server share.

    Attributes:
        jobs: the queue.
        folder: where files of visitors lie; it goes with the server.
        limits: of what they may hand in.
        restorations: the last one of each visitor.
    """

    jobs: Jobs
    folder: Path
    limits: Limits
    restorations: OrderedDict[str, Restoration] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def new_folder(self) -> Path:
        """An empty one for a restoration."""
        return Path(tempfile.mkdtemp(dir=self.folder))

    def keep(self, visitor: str, restoration: Restoration) -> None:
        """Remember a visitor's restoration, and forget the one before and the oldest ones."""
        with self._lock:
            old = [self.restorations.pop(visitor)] if visitor in self.restorations else []
            self.restorations[visitor] = restoration
            while len(self.restorations) > _KEPT:
                old.append(self.restorations.popitem(last=False)[1])
        for one in old:
            shutil.rmtree(one.folder, ignore_errors=True)

    def leave(self, visitor: str) -> None:
        """The visitor has closed the tab: the job stops, the files go."""
        self.jobs.stop(visitor)
        with self._lock:
            gone = self.restorations.pop(visitor, None)
        if gone is not None:
            shutil.rmtree(gone.folder, ignore_errors=True)


def asset(name: str) -> str:
    """The text of a file that comes with the page."""
    return (ASSETS / name).read_text(encoding="utf-8")


def gradio() -> Any:
    """The library, which asks nothing of anybody.

    Raises:
        InvdiffError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import gradio as gr
    except ImportError as error:
        raise InvdiffError(
            f"the browser app needs its extra ({error}): pip install 'invdiff[app]'; or, from a checkout, pip install -e '.[app]'"
        ) from None
    return gr


def build(desk: Desk, vote: str | Path | None = None) -> Any:
    """The page.

    Args:
        desk: what its visitors share.
        vote: run folder whose restorations are voted on; then there are no other tabs.
    """
    gr = gradio()
    from invdiff.app.learn_page import learn_page
    from invdiff.app.restore_page import restore_page
    from invdiff.app.vote_page import Booth, vote_page

    booth = None if vote is None else Booth(vote)
    with gr.Blocks(title="invdiff", analytics_enabled=False, delete_cache=(600, 3600)) as page:
        gr.Markdown("# invdiff")
        if booth is not None:
            vote_page(booth, page)
        else:
            with gr.Tab("Restore"):
                restore_page(desk)
            with gr.Tab("Learn"):
                learn_page()

        def leave(request: Any) -> None:
            desk.leave(str(request.session_hash))

        leave.__annotations__["request"] = gr.Request  # how Gradio knows what to hand over
        page.unload(leave)
    return page


def theme(gr: Any) -> Any:
    """Plain, with the fonts that the visitor has."""
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "Arial", "sans-serif")
    return gr.themes.Default(
        primary_hue="blue", font=sans, font_mono=("ui-monospace", "Menlo", "Consolas", "monospace")
    )


def serve(
    *,
    host: str = "127.0.0.1",
    port: int | None = None,
    vote: str | Path | None = None,
    workers: int = 1,
    limits: Limits | None = None,
    open_browser: bool = False,
    block: bool = True,
) -> tuple[Any, Desk, str]:
    """Open the page.

    Args:
        host: 127.0.0.1 for this machine alone, 0.0.0.0 for everybody who can reach it.
        port: a free one from 7860 on by default.
        vote: run folder whose restorations are voted on.
        workers: jobs at once.
        limits: of what visitors may hand in.
        open_browser: show it at once.
        block: return when the server is stopped; otherwise at once.

    Returns:
        The page, what its visitors share, and the address.

    Raises:
        InvdiffError: Gradio is not installed, the port is taken, or the run cannot be opened.
    """
    gr = gradio()
    limits = limits or Limits()
    port = _free_port(host) if port is None else whole("port", port, 1, 65535)
    _check_port(host, port)
    _sweep()
    desk = Desk(Jobs(workers), Path(tempfile.mkdtemp(prefix=f"{_FOLDER}{os.getpid()}-")), limits)
    os.environ["GRADIO_TEMP_DIR"] = str(desk.folder / "uploads")
    warnings.filterwarnings("ignore", category=InvdiffWarning)  # the page says it beside the picture
    try:
        page = build(desk, vote)
        page.queue(default_concurrency_limit=None)
        _, address, _ = page.launch(
            server_name=host,
            server_port=port,
            prevent_thread_lock=True,
            share=False,
            quiet=True,
            inbrowser=open_browser,
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            pwa=False,
            mcp_server=False,
            ssr_mode=False,
            max_file_size=int(limits.megabytes * 1e6),
            allowed_paths=[str(desk.folder)],
            theme=theme(gr),
            css=asset("app.css"),
        )
        if block:
            print(f"invdiff is open at {address} (Ctrl-C closes it)", flush=True)
            page.block_thread()
    except BaseException:
        _close(desk)
        raise
    if block:
        _close(desk)
    return page, desk, address


def _sweep() -> None:
    """Remove the folders of servers that were killed; each has its process in its name."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_FOLDER}*-*"):
        process = folder.name.removeprefix(_FOLDER).partition("-")[0]
        if not process.isdecimal() or not folder.is_dir() or folder.is_symlink():
            continue
        try:
            os.kill(int(process), 0)
        except ProcessLookupError:
            shutil.rmtree(folder, ignore_errors=True)
        except OSError:  # another user's
            continue


def _close(desk: Desk) -> None:
    desk.jobs.close()
    shutil.rmtree(desk.folder, ignore_errors=True)


def _free_port(host: str) -> int:
    for port in range(7860, 7960):
        try:
            _check_port(host, port)
            return port
        except InvdiffError:
            continue
    raise InvdiffError("port: none from 7860 to 7959 is free; name one with --port")


def _check_port(host: str, port: int) -> None:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise InvdiffError(
            f"host and port must be free to listen on, got {host}:{port}: {error.strerror or error}"
        ) from None
