"""Memory: what is free, what happens when it runs out, what is kept of what was freed."""

import ctypes
import os
import platform
import warnings
from pathlib import Path

import pytest
import torch

import invdiff as iv
from invdiff import batches, memory
from invdiff.batches import LARGEST, MODEST, Batches
from invdiff.memory import free_memory, keep_freed_memory, out_of_memory

SHAPE = (3, 8, 8)
MASK = iv.Mask(iv.make_mask("half", 8))
CPU = torch.device("cpu")


def measurements(count):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(0))


def network(fits, error, late=False):
    """A network that runs out of memory above `fits` images, in the middle of a run if `late`; and its batch sizes."""
    sizes = []

    def predict(x, t):
        sizes.append(len(x))
        if len(x) > fits and (not late or int(t[0]) < 500):
            raise error
        return 0.1 * x

    return iv.NetworkBackbone(predict, image_shape=SHAPE), sizes


ERRORS = [
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes. Error code 12"),
    MemoryError(),
]


@pytest.mark.parametrize("error", ERRORS, ids=["GPU", "CPU", "Python"])
@pytest.mark.parametrize("sampler", ["ddnm", "dps"])
def test_out_of_memory_halves_the_batch_and_changes_no_result(error, sampler):
    y = measurements(7)
    wanted = iv.solve(MASK, y, sampler, backbone=network(99, error)[0], steps=4, batch_size=1).x
    backbone, sizes = network(2, error)
    with pytest.warns(iv.InvdiffWarning, match="out of memory with 7 images at once on cpu: going on with 4"):
        found = iv.solve(MASK, y, sampler, backbone=backbone, steps=4).x
    assert torch.allclose(found, wanted, atol=1e-6)
    assert sizes == [7, 4, *[2] * 12, *[1] * 4]


def test_a_batch_that_is_done_again_leaves_no_trace_of_the_first_try(capsys):
    backbone, _ = network(1, ERRORS[0], late=True)
    seen = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iv.InvdiffWarning)
        solution = iv.solve(
            MASK,
            measurements(2),
            backbone=backbone,
            steps=6,
            keep_trajectory=True,
            progress=True,
            callback=lambda p: seen.append((len(p.x), p.step)),
        )
    assert len(solution.trajectory) == 6 == solution.nfe and len(solution.trajectory[0].x) == 1
    assert seen == [(2, 0), (2, 1), (2, 2), *[(1, k) for k in range(6)] * 2]


def test_one_image_that_does_not_fit_is_an_error_that_says_what_helps():
    backbone, sizes = network(0, ERRORS[0])
    with pytest.warns(iv.InvdiffWarning), pytest.raises(iv.InvdiffError, match="not enough memory for one image"):
        iv.solve(MASK, measurements(2), "dps", backbone=backbone, steps=2)
    assert sizes == [2, 1]


def test_what_belongs_together_is_never_parted():
    sizes = []

    def work(rows):
        sizes.append(rows.tolist())
        if len(rows) > 3:
            raise ERRORS[0]
        return rows.double()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", iv.InvdiffWarning)
        Batches(9, 12, CPU, False, size=8, together=3).run(work)
        assert [len(rows) for rows in sizes] == [6, 3, 3, 3] and sizes[-1] == [6, 7, 8]
        with pytest.raises(iv.InvdiffError, match="the 4 particles of one image"):
            Batches(8, 12, CPU, False, together=4).run(work)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    backbone, sizes = network(0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        iv.solve(MASK, measurements(2), backbone=backbone, steps=2)
    assert sizes == [2]
    assert not out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize(
    ("free", "gradient", "wanted"),
    [
        (None, False, MODEST // 12_288),  # unknown
        (10**12, True, MODEST // 12_288),
        (8 * 10**9, False, MODEST // 12_288),
        (4 * 10**9, True, 4),
        (10**6, True, 1),
    ],
)
def test_the_first_batch_fits_into_what_is_free(monkeypatch, free, gradient, wanted):
    monkeypatch.setattr(batches, "free_memory", lambda device: free)
    assert Batches(1000, 12_288, CPU, gradient).size == wanted
    assert Batches(3, 12_288, CPU, gradient).size == min(3, wanted)
    assert Batches(1000, 12_288, CPU, gradient, size=77).size == 77  # the caller's own


def peak_of(job):
    """Bytes by which the resident memory of a process that does `job` grows at most."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            ctypes.CDLL(None).malloc_trim(0)  # what earlier tests freed would be filled first
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            before = resident("VmRSS")
            job()
            os.write(write, str(resident("VmHWM") - before).encode())
        finally:
            os._exit(0)
    os.close(write)
    found = os.read(read, 100)
    os.close(read)
    os.waitpid(child, 0)
    if not found:
        pytest.skip("the peak of a process cannot be read here")
    return int(found)


def resident(name):
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(status[name].split()[0])


@pytest.mark.slow
@pytest.mark.skipif(platform.system() != "Linux", reason="reads /proc")
@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize(("sampler", "gradient"), [("ddnm", False), ("mmps", True)])
def test_a_further_image_takes_no_more_than_is_reckoned_and_not_a_hundredth_of_it(sampler, gradient):
    backbone = iv.load_backbone("cats64", precision="float32")
    mask = iv.Mask(iv.make_mask("half", 64))

    def run(count):
        y = torch.rand(count, 3, 64, 64)
        return lambda: iv.solve(mask, y, sampler, backbone=backbone, steps=1, batch_size=count, progress=False)

    one, five = peak_of(run(1)), peak_of(run(5))
    per_element = (five - one) / 4 / 12_288
    assert batches._BYTES[gradient] / 100 < per_element < batches._BYTES[gradient]


class FakeGPU:
    """PyTorch's account of a GPU of `memory` bytes on which an image takes `per_image`."""

    def __init__(self, monkeypatch, memory, per_image):
        self.memory, self.per_image, self.peak = memory, per_image, 0
        for name in ("reset_peak_memory_stats", "memory_allocated", "max_memory_allocated", "empty_cache"):
            monkeypatch.setattr(torch.cuda, name, getattr(self, name))
        monkeypatch.setattr(batches, "free_memory", lambda device: memory)

    def reset_peak_memory_stats(self, device):
        self.peak = 0

    def memory_allocated(self, device):
        return 0

    def max_memory_allocated(self, device):
        return self.peak

    def empty_cache(self):
        pass

    def work(self, rows):
        self.peak = len(rows) * self.per_image
        if self.peak > self.memory:
            raise ERRORS[0]
        return rows.double()


def test_on_a_gpu_batches_grow_to_what_one_was_measured_to_take(monkeypatch):
    gpu = FakeGPU(monkeypatch, memory=10**10, per_image=10**8)
    cut = Batches(200, 196_608, torch.device("cuda:0"), gradient=False)
    sizes = []
    rows = cut.run(lambda rows: sizes.append(len(rows)) or gpu.work(rows))
    assert sizes == [2, 80, 80, 38] and torch.equal(rows, torch.arange(200).double())
    for fixed in ({"size": 3}, {"grows": False}):
        cut = Batches(200, 196_608, torch.device("cuda:0"), gradient=False, **fixed)
        cut.run(gpu.work)
        assert cut.size == fixed.get("size", 2)
    cut = Batches(10**4, 1000, torch.device("cuda:0"), gradient=False)
    gpu.per_image = 1
    cut.run(gpu.work)
    assert cut.size == LARGEST // 1000


def test_after_it_ran_out_once_a_batch_grows_no_more(monkeypatch):
    gpu = FakeGPU(monkeypatch, memory=10**10, per_image=10**9)
    sizes = []

    def work(rows):
        sizes.append(len(rows))
        gpu.per_image = 10**9 if len(sizes) == 1 else 2 * 10**9  # the second batch needs more than the first
        return gpu.work(rows)

    with pytest.warns(iv.InvdiffWarning, match="out of memory with 8 images at once on cuda:0: going on with 4"):
        Batches(20, 200_000, torch.device("cuda:0"), gradient=False).run(work)
    assert sizes == [2, 8, 4, 4, 4, 4, 2]


def test_free_memory_on_the_cpu_is_what_the_system_and_the_control_group_leave(tmp_path, monkeypatch):
    (tmp_path / "meminfo").write_text("MemTotal:       200 kB\nMemAvailable:   100 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(memory, "_GROUP", tmp_path)
    assert free_memory(CPU) == 102_400
    for limit, used, wanted in (("max", "5", 102_400), ("60000", "10000", 50_000), ("10", "20", 0)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text(used + "\n")
        assert free_memory(CPU) == wanted
    monkeypatch.setattr(memory, "_MEMINFO", tmp_path / "nowhere")
    assert free_memory(CPU) is None and free_memory(torch.device("meta")) is None


# ---- memory that was freed ---------------------------------------------------------------------------------------


@pytest.fixture
def c_library(monkeypatch):
    """A C library that writes down what it is asked for."""
    asked = []

    class Library:
        accepts = 1

        def __init__(self, name):
            pass

        def mallopt(self, parameter, value):
            asked.append((parameter, value))
            return Library.accepts

    monkeypatch.setattr(memory.ctypes, "CDLL", Library)
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    Library.asked = asked
    return Library


def test_glibc_is_told_to_keep_memory_and_to_take_large_blocks_from_what_it_keeps(c_library):
    trim, mmap = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    assert keep_freed_memory(2**20) is True
    assert sorted(c_library.asked) == [(mmap, 2**20), (trim, 2**20)]


def test_a_refusal_is_told(c_library):
    c_library.accepts = 0
    assert keep_freed_memory() is False


@pytest.mark.parametrize(("system", "libc"), [("Darwin", "glibc"), ("Linux", "musl")])
def test_elsewhere_nothing_is_set(c_library, monkeypatch, system, libc):
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    assert keep_freed_memory() is False and c_library.asked == []
