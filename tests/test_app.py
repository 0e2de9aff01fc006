"""The browser app without a browser: the queue, what may be handed in, and that its commands repeat what it did."""

from __future__ import annotations

import contextlib
import io
import sys
import threading
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from invdiff.app.jobs import DONE, FAILED, STOPPED, Job, Jobs, Stopped, Turns
from invdiff.app.limits import Limits, read_mask_file, read_photo, resized_mask
from invdiff.app.recipe import Damage, backbone_by_name, examples, make_recipe, open_photo, painted_mask
from invdiff.app.restoring import Restoration, watched
from invdiff.cli import main
from invdiff.data import chelsea64
from invdiff.errors import InvdiffError
from invdiff.operators import Mask, make_mask
from invdiff.solve import solve

LIMITS = Limits()


@pytest.fixture
def jobs():
    queue = Jobs()
    yield queue
    queue.close()


# ---- the queue --------------------------------------------------------------------------------------------------


def test_one_job_at_a_time_in_the_order_of_arrival(jobs):
    order, at_once, most = [], [], []
    gate = threading.Event()

    def work(job: Job) -> None:
        at_once.append(job.number)
        most.append(len(at_once))
        gate.wait(10)
        order.append(job.visitor)
        at_once.remove(job.number)

    asked = [jobs.submit(f"visitor {i}", work) for i in range(5)]
    while jobs.place(asked[0]):
        pass
    assert [jobs.place(job) for job in asked] == [0, 1, 2, 3, 4]
    gate.set()
    assert all(jobs.wait(job, 20) for job in asked)
    assert order == [f"visitor {i}" for i in range(5)] and max(most) == 1
    assert {job.state for job in asked} == {DONE}


def test_a_job_that_is_stopped_leaves_the_queue_or_ends_at_its_next_step(jobs):
    begun = threading.Event()
    steps = []

    def work(job: Job) -> None:
        begun.set()
        while True:
            job.stopping.wait(10)
            job.check()
            steps.append(1)

    running, waiting = jobs.submit("a", work), jobs.submit("b", work)
    assert begun.wait(10)
    jobs.stop("b")
    assert waiting.state == STOPPED and jobs.place(waiting) == 0
    jobs.stop("a")
    assert jobs.wait(running, 10) and running.state == STOPPED and not steps


def test_a_visitor_has_one_job_and_a_full_queue_refuses(jobs):
    gate = threading.Event()
    small = Jobs(most_waiting=1)
    try:
        first = small.submit("a", lambda job: gate.wait(10))
        while small.place(first):
            pass
        second = small.submit("b", lambda job: None)
        with pytest.raises(InvdiffError, match="1 visitor is waiting already"):
            small.submit("c", lambda job: None)
        third = small.submit("b", lambda job: None)
        assert second.state == STOPPED and small.place(third) == 1
    finally:
        gate.set()
        small.close()


def test_a_worker_outlives_a_job_that_fails(jobs):
    def broken(job: Job) -> None:
        raise ValueError("no luck")

    def refused(job: Job) -> None:
        raise InvdiffError("x must be small, got 9")

    failed = [jobs.submit("a", broken), jobs.submit("b", refused)]
    well = jobs.submit("c", lambda job: None)
    assert jobs.wait(well, 10) and well.state == DONE
    assert [job.state for job in failed] == [FAILED, FAILED]
    assert "no luck" in failed[0].error and failed[1].error == "x must be small, got 9"


def test_turns_go_round_and_those_who_leave_are_passed_over():
    turns, done = Turns(["a", "b", "c"]), []

    def walk(name: str, steps: int) -> None:
        turns.await_own(name)
        for step in range(steps):
            done.append(name)
            if step < steps - 1:
                turns.pass_on(name)
        turns.leave(name)

    threads = [threading.Thread(target=walk, args=pair) for pair in (("a", 3), ("b", 1), ("c", 2))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert "".join(done) == "abcaca"


# ---- what is handed in ------------------------------------------------------------------------------------------


def wrong_files(folder):
    """Ten files that are no photo, by name, with what their sentence says."""
    good = io.BytesIO()
    chelsea64().save(good, format="PNG")
    content = good.getvalue()
    cut = content[: len(content) // 2]
    files = {
        "empty.png": (b"", "is empty"),
        "text.png": (b"this is no picture\n" * 20, "not an image file"),
        "program.exe": (b"MZ\x90\x00" + bytes(200), "not an image file"),
        "page.svg": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "not an image file"),
        "cut.png": (cut, "damaged or truncated"),
        "archive.zip": (b"PK\x05\x06" + bytes(18), "not an image file"),
        "document.pdf": (b"%PDF-1.4\n%%EOF\n", "not an image file"),
        "huge.png": (_png_header(60_000, 60_000), "pixels|too large"),
        "cmyk.jpg": (_encoded(Image.new("CMYK", (64, 64)), "JPEG"), "CMYK"),
        "tiny.png": (_encoded(Image.new("RGB", (3, 3)), "PNG"), "at least 8 pixels"),
    }
    for name, (data, _) in files.items():
        (folder / name).write_bytes(data)
    return {name: said for name, (_, said) in files.items()}


def _encoded(image: Image.Image, kind: str) -> bytes:
    data = io.BytesIO()
    image.save(data, format=kind)
    return data.getvalue()


def _png_header(width: int, height: int) -> bytes:
    import struct
    import zlib

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_every_wrong_file_gets_a_sentence_that_names_it(tmp_path):
    for name, said in wrong_files(tmp_path).items():
        with pytest.raises(InvdiffError, match=said) as refused:
            read_photo(tmp_path / name, LIMITS)
        assert name in str(refused.value) or name == "tiny.png"
        assert str(tmp_path) not in str(refused.value), "where it lies on the server is nobody's business"


def test_a_large_photo_is_shrunken_with_a_sentence_and_a_large_file_refused(tmp_path):
    Image.effect_noise((5200, 3900), 20).convert("RGB").resize((5200, 3900)).save(tmp_path / "20mp.jpg", quality=60)
    image, said = read_photo(tmp_path / "20mp.jpg", LIMITS)
    assert image.width * image.height <= 2_000_000 and abs(image.width / image.height - 4 / 3) < 0.01
    assert "20.3 megapixels" in said[0] and f"{image.width}x{image.height}" in said[0]
    with pytest.raises(InvdiffError, match="MB are taken"):
        read_photo(tmp_path / "20mp.jpg", Limits(megabytes=0.1))
    with pytest.raises(InvdiffError, match="5200x3900 pixels; at most 10 megapixels"):
        read_photo(tmp_path / "20mp.jpg", Limits(most_megapixels=10))


def test_what_a_phone_adds_to_a_photo_does_no_harm(tmp_path):
    turned = Image.new("RGB", (40, 20), (200, 0, 0))
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    assert read_photo(tmp_path / "turned.jpg", LIMITS)[0].size == (20, 40)
    Image.new("RGBA", (20, 20), (9, 9, 9, 100)).save(tmp_path / "glass.png")
    image, said = read_photo(tmp_path / "glass.png", LIMITS)
    assert image.mode == "RGB" and "transparency" in said[0]
    frames = [Image.new("RGB", (20, 20), (i, 0, 0)) for i in (0, 200)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert "2 frames" in read_photo(tmp_path / "moving.gif", LIMITS)[1][0]


def test_a_mask_of_another_size_keeps_every_missing_pixel(tmp_path):
    known = torch.ones(100, 150, dtype=torch.bool)
    known[41, 77] = False
    small = resized_mask(known, (10, 15))
    assert int((~small).sum()) == 1 and not small[4, 7]
    assert torch.equal(resized_mask(small, (100, 150))[40:50, 70:80], torch.zeros(10, 10, dtype=torch.bool))
    Image.fromarray(known.numpy()).save(tmp_path / "mask.png")
    found, said = read_mask_file(tmp_path / "mask.png", (10, 15), LIMITS)
    assert torch.equal(found, small) and "150x100" in said[0]
    with pytest.raises(InvdiffError, match="must have the photo's shape, 20x20"):
        read_mask_file(tmp_path / "mask.png", (20, 20), LIMITS)


def test_what_is_painted_is_what_is_missing():
    paint = np.zeros((64, 64, 4), np.uint8)
    paint[10:20, 30:40] = (200, 0, 90, 255)
    painted = painted_mask(_encoded(Image.fromarray(paint), "PNG"))
    recipe = make_recipe(chelsea64(), Damage("paint", painted=painted), ["ddnm"])
    assert recipe.known is not None and torch.equal(~recipe.known, torch.from_numpy(paint[..., 3] > 0))
    for content in (b"", b"GIF89a", _encoded(chelsea64(), "JPEG")):
        with pytest.raises(InvdiffError, match="must be a PNG"):
            painted_mask(content)


@pytest.mark.parametrize(
    ("damage", "more", "said"),
    [
        (Damage("paint"), {}, "nothing is painted yet"),
        (Damage("paint", painted=torch.zeros(64, 64, dtype=torch.bool)), {}, "nothing is missing"),
        (Damage("file"), {}, "mask must be a picture"),
        (Damage("ready", mask="nope"), {}, "nope"),
        (Damage("flood"), {}, "damage must be one of"),
        (Damage("blur", blur="/etc/passwd"), {}, "kernel must be one of"),
        (Damage("blur", blur_size=4), {}, "must be odd"),
        (Damage("super_resolution", scale=99), {}, "scale must be"),
        (Damage(), {"samplers": []}, "samplers must be one at least"),
        (Damage(), {"samplers": ["ddnm"] * 7}, "at most 6"),
        (Damage(), {"samplers": ["dream"]}, "dream"),
        (Damage(), {"steps": 5000}, "steps must be"),
        (Damage(), {"n_samples": 999}, "samples must be"),
        (Damage(), {"seed": -1}, "seed must be"),
        (Damage(), {"backbone": "/etc"}, "backbone must be one of"),
        (Damage(), {"options": "eta"}, "must be written name=value"),
        (Damage(), {"options": "etta=3"}, "eta"),
        (Damage(), {"options": "repaint.jump_length=3"}, "not among the samplers"),
    ],
)
def test_a_form_that_cannot_be_carried_out_gets_a_sentence(damage, more, said):
    samplers = more.pop("samplers", ["ddnm"]) if "samplers" in more else ["ddnm"]
    with pytest.raises(InvdiffError, match=said):
        make_recipe(chelsea64(), damage, samplers, **{"backbone": "cats64", **more})


# ---- the restoration --------------------------------------------------------------------------------------------


def restored(jobs: Jobs, folder, damage: Damage, samplers: list[str], image=None, **more) -> Restoration:
    recipe = make_recipe(
        image or chelsea64(), damage, samplers, **{"backbone": "cats64", "steps": 2, "seed": 5, **more}
    )
    restoration = Restoration(recipe, folder)
    job = jobs.submit("visitor", restoration)
    assert jobs.wait(job, 300) and job.state == DONE, job.error
    return restoration


CASES = {
    "a mask": (Damage("ready", mask="box"), ["ddnm", "repaint"], {"n_samples": 2, "baselines": True}),
    "a mask with noise": (Damage("ready", mask="half", sigma=9), ["ddnm+"], {}),
    "blur": (Damage("blur", sigma=4), ["pigdm"], {"options": "eta=0.5"}),
    "grey": (Damage("colorization", done=True), ["ddnm"], {}),
    "small": (Damage("super_resolution", done=True), ["ddrm"], {}),
    "noise": (Damage("identity", sigma=20), ["ddnm+"], {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_python_and_the_commands_make_the_same_pictures(case, jobs, tmp_path, monkeypatch, capsys):
    damage, samplers, more = CASES[case]
    app, code, shell = (tmp_path / name for name in ("app", "code", "shell"))
    for folder in (app, code, shell):
        folder.mkdir()
    restoration = restored(jobs, app, damage, samplers, **more)
    assert {path.name for path in restoration.files} >= {"photo.png", "repeat.py", "repeat.sh", "restoration.zip"}
    with zipfile.ZipFile(app / "restoration.zip") as archive:
        for folder in (code, shell):
            archive.extractall(folder, [n for n in archive.namelist() if n in ("photo.png", "mask.png")])
    monkeypatch.chdir(code)
    exec(compile((app / "repeat.py").read_text(), "repeat.py", "exec"), {})
    monkeypatch.chdir(shell)
    import shlex

    for line in (app / "repeat.sh").read_text().splitlines():
        monkeypatch.setattr(sys, "argv", shlex.split(line))
        with pytest.raises(SystemExit) as end:
            main()
        assert not end.value.code, capsys.readouterr().err
    compared = 0
    for track in restoration.tracks.values():
        for path in track.pictures:
            for folder in (code, shell):
                assert np.array_equal(np.asarray(Image.open(path)), np.asarray(Image.open(folder / path.name))), (
                    path.name
                )
                compared += 1
    assert compared == 2 * sum(len(t.pictures) for t in restoration.tracks.values()) >= 2


def test_samplers_side_by_side_give_what_each_gives_alone(jobs, tmp_path):
    mask = make_mask("box", 64)
    restoration = restored(jobs, tmp_path, Damage("ready", mask="box"), ["ddnm", "mcg"])
    for name in ("ddnm", "mcg"):
        alone = solve(Mask(mask), chelsea64(), name, backbone="cats64", steps=2, seed=5)
        assert np.array_equal(np.asarray(Image.open(tmp_path / f"{name}.png")), np.asarray(alone.image))
    for track in restoration.tracks.values():
        assert track.calls == track.all_calls == 2 and track.share == 1 and track.x0.startswith("data:image/")
        way = Image.open(tmp_path / f"{track.sampler}-way.gif")
        assert way.n_frames == 2


def test_a_photo_of_any_size_is_restored_where_it_is_missing(jobs, tmp_path):
    image = chelsea64().resize((150, 110), Image.Resampling.BICUBIC)
    painted = torch.zeros(110, 150, dtype=torch.bool)
    painted[20:30, 20:34] = True
    restoration = restored(jobs, tmp_path, Damage("paint", painted=painted), ["ddnm"], image, backbone="auto")
    done = np.asarray(Image.open(tmp_path / "ddnm.png"))
    kept = ~painted.numpy()
    assert done.shape == (110, 150, 3) and np.array_equal(done[kept], np.asarray(image)[kept])
    assert restoration.recipe.backbone == "photos" and not np.array_equal(done, np.asarray(image))


def test_stop_ends_within_one_network_call_and_the_other_sampler_goes_on(jobs, tmp_path):
    recipe = make_recipe(chelsea64(), Damage(), ["ddnm", "daps"], backbone="cats64", steps=6)
    restoration = Restoration(recipe, tmp_path)
    daps = restoration.tracks["daps"]
    began, seen = threading.Event(), []
    walk = restoration._walk

    def counted(job, name, A, y, model, *rest):
        def before() -> None:
            if daps.stopping.is_set():
                seen.append(name)
            elif name == "daps" and began.is_set():
                daps.stopping.set()
            elif name == "daps":
                began.set()

        walk(job, name, A, y, watched(model, before), *rest)

    restoration._walk = counted  # type: ignore[method-assign]
    job = jobs.submit("visitor", restoration)
    assert jobs.wait(job, 120) and job.state == DONE, job.error
    assert daps.state == STOPPED and restoration.tracks["ddnm"].state == DONE
    assert "daps" not in seen, "no call after the one in which it was told to stop"
    assert restoration.done.samplers == ("ddnm",) and "daps" not in (tmp_path / "repeat.sh").read_text()


def test_a_backbone_that_is_watched_says_the_same_and_can_be_stopped():
    count: list[int] = []
    backbone = backbone_by_name("cats64")
    watched_backbone = watched(backbone, lambda: count.append(1))
    one, other = (
        solve(Mask(make_mask("box", 64)), chelsea64(), "ddnm", backbone=b, steps=2)
        for b in (backbone, watched_backbone)
    )
    assert torch.equal(one.x, other.x) and len(count) == 2

    def stop() -> None:
        raise Stopped

    with pytest.raises(Stopped):
        solve(Mask(make_mask("box", 64)), chelsea64(), "ddnm", backbone=watched(backbone, stop), steps=2)


def test_too_much_work_for_one_visitor_is_refused_before_the_first_call(jobs, tmp_path):
    recipe = make_recipe(chelsea64(), Damage(), ["repaint"], backbone="cats64", limits=Limits(calls=1000))
    job = jobs.submit("visitor", Restoration(recipe, tmp_path, Limits(calls=1000)))
    assert jobs.wait(job, 60) and job.state == FAILED
    assert "network calls; this server makes 1,000 at most" in job.error


def test_the_examples_are_here_without_a_network():
    for name in examples():
        image, said = open_photo(None, name, LIMITS)
        assert min(image.size) >= 64 and not said
    with pytest.raises(InvdiffError, match="example must be one of"):
        open_photo(None, "Mona Lisa", LIMITS)


def test_without_the_extra_a_sentence_says_how_to_get_it(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setattr(sys, "argv", ["invdiff", "app"])
    with pytest.raises(SystemExit) as end, contextlib.redirect_stdout(io.StringIO()):
        main()
    assert end.value.code == 2 and "pip install 'invdiff[app]'" in " ".join(capsys.readouterr().err.split())


# ---- the figures to be moved by hand ----------------------------------------------------------------------------


def test_every_figure_follows_its_fields_and_speaks_to_screen_readers():
    from invdiff.app import learning

    drawn = [
        [learning.schedule_figure(name, n, "respaced") for name, n in (("linear", 20), ("cosine", 20), ("cosine", 50))],
        [learning.path_figure(*given) for given in (("plain", 20, 5, 3), ("jumps", 20, 5, 3), ("jumps", 20, 5, 4))],
        [learning.filter_figure(s, "gaussian blur", 400, 0.1) for s in ("diffpir", "pigdm", "ddnm+")],
        [learning.plane_figure("ddnm+", 8, 0.1, share) for share in (0.0, 0.5, 1.0)],
    ]
    for figures in drawn:
        assert len(set(figures)) == len(figures)
        for svg in figures:
            assert 'role="img" aria-label=' in svg and "currentColor" in svg and "http://127" not in svg
    with pytest.raises(InvdiffError, match="longer than the path"):
        learning.path_figure("jumps", 5, 9, 3)


def test_the_filters_are_those_of_the_samplers():
    """At noise 0 every filter with a noise in it takes up the whole residual; with noise less the weaker the direction."""
    from invdiff.app import learning

    squared = np.array([1e-3, 1e-2, 1e-1, 1.0])
    for name in learning.FILTERS:
        clean, noisy = (learning.taken_up(name, 300, sigma)(squared) for sigma in (0.0, 0.2))
        if name in ("dps", "mcg"):
            assert np.array_equal(clean, squared)
        else:
            assert np.array_equal(clean, np.ones(4)) and (np.diff(noisy) >= 0).all() and (noisy <= 1).all()


def test_particles_on_the_plane_end_where_the_posterior_is():
    from invdiff.app import learning

    frames = learning.walk("ddnm+", 40, 0.1, 0)
    assert all(frame.shape == (learning.PARTICLES, 2) for frame in frames)
    spread = [float((frame[:, 0] - 0.05).abs().mean()) for frame in frames]
    assert spread[0] > 0.5 > 0.2 > spread[-1], "from everywhere to the band of the measurement"


def test_what_a_killed_server_left_behind_goes_and_nothing_else(tmp_path, monkeypatch):
    import os
    import subprocess
    import tempfile

    from invdiff.app.server import _sweep

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    kept = [f"invdiff-app-{os.getpid()}-x", "invdiff-app-mine", "invdiff-apple-7-x", "other"]
    for name in (f"invdiff-app-{dead.pid}-abc", *kept):
        (tmp_path / name).mkdir()
    _sweep()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(kept)
