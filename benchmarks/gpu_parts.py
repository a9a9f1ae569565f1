"""What `python -m benchmarks.gpu` measures: each part yields its tables as they are done."""

import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.table import Table
from torch import Tensor

import flowprior
from benchmarks import sampling
from benchmarks.glows import CANDIDATES, FOOTNOTE, Candidate, Size, flowprior_glow
from benchmarks.measure import activation_peak, alternate, initialize, training_step, wall_clock
from flowprior.flows import Flow, Glow, Trumpet
from flowprior.losses import LatentLikelihood, Loss, Reconstruction
from flowprior.metrics import worst_round_trip

ROOT = Path(__file__).resolve().parent.parent
UNREACHABLE = "http://127.0.0.1:9"
"""A proxy that refuses at once, so that a machine without network does not wait for downloads."""
DEFAULTS = "Flowprior's default is float32; that of the peers, as torch's, is TF32 in convolutions."


TESTS_LIMIT = 120
"""Seconds of all tests of the GPU, within the limit of their part."""


class Scale(NamedTuple):
    """Where to measure, how much, and where files beside the page go."""

    device: str
    tiny: bool
    folder: Path = Path("runs/gpu")

    @property
    def repeats(self) -> int:
        """Of every call, after a first one that does not count."""
        return 1 if self.tiny else 5

    def pick(self, large: object, small: object) -> object:
        """The large one, or the small one for a trial of the script."""
        return small if self.tiny else large

    def seconds(
        self, calls: dict[str, Callable[[], object]], most: int = 5
    ) -> dict[str, list[float]]:
        """Of functions that take turns, `most` times at most."""
        return alternate(calls, min(most, self.repeats), wall_clock(self.device))


def tests(scale: Scale) -> Iterator[Table]:
    """The tests of the GPU, several at once: how many pass, and how each failure ends.

    What pytest prints, with all of every failure, stays in tests.txt in the page's folder.
    """
    files = sorted(map(str, Path(ROOT, "tests").glob("test_cuda*.py")))
    parallel = importlib.util.find_spec("xdist") and (os.cpu_count() or 1) > 3
    options = ["-p", "no:cacheprovider", "-o", "addopts=", "-v", "-rfE", "--tb=short"]
    options += ["-n", "8"] if parallel else []
    options += ["-k", "draws or round_trip_of_shipped"] if scale.tiny else []
    proxies = {name: UNREACHABLE for name in ("http_proxy", "https_proxy")}
    environment = {**proxies, **os.environ, "FLOWPRIOR_TEST_DEVICE": scale.device}
    call = [sys.executable, "-m", "pytest", *files, *options]
    scale.folder.mkdir(parents=True, exist_ok=True)
    path = scale.folder / "tests.txt"
    with path.open("w") as log:
        try:
            options = {"cwd": ROOT, "env": environment, "timeout": TESTS_LIMIT}
            status = str(subprocess.run(call, stdout=log, stderr=log, **options).returncode)
        except subprocess.TimeoutExpired:
            status = f"stopped after {TESTS_LIMIT} s"
    yield from tables_of_tests(path.read_text(), status)


def tables_of_tests(output: str, status: str) -> Iterator[Table]:
    """Numbers of tests by result, and the failures, of what `pytest -v -rfE` prints."""
    results = dict(re.findall(r"^(tests/\S+) (PASSED|FAILED|ERROR|SKIPPED)\b", output, re.M))
    parallel = re.findall(r"^\[gw\d+\].*? (PASSED|FAILED|ERROR|SKIPPED) (tests/\S+)", output, re.M)
    results |= {test: result for result, test in parallel}
    counts = Table("result", "tests", title=f"tests of the GPU; exit status {status}")
    for result in ("PASSED", "FAILED", "ERROR", "SKIPPED"):
        counts.add_row(result.lower(), str(list(results.values()).count(result)))
    yield counts
    messages = re.findall(r"^(?:FAILED|ERROR) (tests/\S+)(?: - (.*))?$", output, re.M)
    failed = {test: "" for test, result in results.items() if result in ("FAILED", "ERROR")}
    failures = failed | dict(messages)
    if failures:
        table = Table("test", "message", title="failures")
        for test, message in failures.items():
            table.add_row(test, message or "see tests.txt")
        yield table


@contextmanager
def tensor_float() -> Iterator[None]:
    """Convolutions in TF32, which flowprior switches off."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def arithmetics(device: str, ours: bool) -> dict[str, Callable[[], AbstractContextManager]]:
    """Ways to compute, by name: bfloat16 for the networks alone is a matter of our flows."""
    ways = {"float32": nullcontext, "TF32": tensor_float}
    nets = {"bfloat16 nets": partial(torch.autocast, device, torch.bfloat16)}
    return ways | nets if ours else ways


def within(context: Callable[[], AbstractContextManager], call: Callable[[], object]) -> object:
    """What a call gives under a context."""
    with context():
        return call()


def glow_step(scale: Scale) -> Iterator[Table]:
    """Training steps of Glow: precision and peers; and what TF32 does to round trips."""
    steps, hidden, batch = scale.pick((16, 256, 32), (1, 8, 2))
    yield round_trips(scale)
    for side in scale.pick((64, 128), (32,)):
        x = torch.rand(batch, 3, side, side, device=scale.device) - 0.5
        yield compared_glows(scale, Size(steps, hidden, side), x)


def round_trips(scale: Scale) -> Table:
    """Worst round trip of samples of the weights that come with flowprior."""
    table = Table("weights", "float32", "TF32", title="worst round trip of 16 samples")
    for name in ("glow_layers_32", "glow_mnist", "coupling1x1_mnist"):
        flow = flowprior.load(ROOT / "weights" / name, scale.device)
        x = flow.to_unit_range(flow.sample(16, 0.8, generator=torch.Generator().manual_seed(0)))
        call = partial(worst_round_trip, flow, x.clamp(0, 1))
        errors = [within(context, call) for context in (nullcontext, tensor_float)]
        table.add_row(name, *(f"{error:.1e}" for error in errors))
    return table


def compared_glows(scale: Scale, size: Size, x: Tensor) -> Table:
    """Ours and peers, in turns: in float32, in TF32, which is the peers' default, and ours more."""
    title = f"Glow, 4 levels x {size.steps} steps, {size.hidden} channels, {batch_text(x)}"
    calls, peaks, missing = {}, {}, []
    for name, make in CANDIDATES.items():
        try:
            candidate = make(size)
        except ImportError:
            missing.append(name)
            continue
        initialize(candidate, x)
        for way, context in arithmetics(scale.device, "flowprior" in name).items():
            label = f"{name}, {way}"
            peaks[label] = within(context, partial(activation_peak, candidate, x))
            calls[label] = partial(within, context, partial(training_step, candidate, x))
    table = timed(title, scale.seconds(calls), "flowprior plain, float32", peaks)
    for name in missing:
        table.add_row(name, "not installed")
    table.caption = f"{FOOTNOTE} {DEFAULTS}"
    return table


def compiled(scale: Scale) -> Iterator[Table]:
    """Training steps of Glow under torch.compile, which takes long for many steps."""
    side, hidden, batch = scale.pick((64, 256, 32), (16, 8, 2))
    x = torch.rand(batch, 3, side, side, device=scale.device) - 0.5
    for levels, steps in scale.pick(((1, 2), (4, 2)), ((1, 1),)):
        yield compiled_glow(scale, Size(steps, hidden, side, levels), x)


def compiled_glow(scale: Scale, size: Size, x: Tensor) -> Table:
    """A small Glow as it is and compiled, in turns."""
    calls, peaks, first = {}, {}, 0.0
    clock = wall_clock(scale.device)
    for name in ("plain", "compiled"):
        torch.manual_seed(0)
        candidate = flowprior_glow(size, False)
        initialize(candidate, x)
        if name == "compiled":
            backend = scale.pick("inductor", "aot_eager")
            log_prob = torch.compile(candidate.log_prob, backend=backend)
            candidate = Candidate(candidate.model, log_prob)
            start = clock()
            training_step(candidate, x)
            first = clock() - start
        peaks[name] = activation_peak(candidate, x)
        calls[name] = partial(training_step, candidate, x)
    title = f"torch.compile, {size.levels} levels x {size.steps} steps, {batch_text(x)}"
    table = timed(title, scale.seconds(calls), "plain", peaks)
    table.caption = f"Compiling: {first:.0f} s."
    return table


def gaussianization(scale: Scale) -> Iterator[Table]:
    """Forward and backward of every layer."""
    from benchmarks.gaussianization import forward_and_backward, layers, make_latents

    side = scale.pick(64, 16)
    for batch in scale.pick((1, 16, 64), (1, 2)):
        x = make_latents(batch, side, scale.device, torch.float32)
        calls = {name: partial(forward_and_backward, h, x) for name, h in layers().items()}
        title = f"forward + backward, latents 3x{side}x{side}, batch {batch}"
        # Eigendecompositions of a batch are made one after another, which takes long.
        yield timed(title, scale.seconds(calls, max(1, 32 // batch)), "robust()")


def eikonal(scale: Scale) -> Iterator[Table]:
    """Travel times and their gradient: models on the device against the same on the CPU."""
    from benchmarks.eikonal import layers, solves

    models, sources = scale.pick((16, 8), (2, 2))
    for side in scale.pick((64, 128), (16,)):
        m = layers(models, side)
        calls = {}
        for name, given in (("CPU", m), (scale.device, m.to(scale.device))):
            for what, call in solves(given, sources).items():
                calls[f"{what}, models on {name}"] = call
        title = f"{models} models {side}x{side} x {sources} sources, float64"
        yield timed(title, scale.seconds(calls), "forward, models on CPU")


def trumpet(scale: Scale) -> Iterator[Table]:
    """Training steps, projection and memory of TRUMPET, beside a Glow of images of that size."""
    batch = scale.pick(32, 2)
    for channels, side in scale.pick(((3, 32), (3, 64), (1, 128)), ((1, 32),)):
        small = {"low_steps": 2, "low_hidden_channels": 8, "widths": (4, 4)} if scale.tiny else {}
        x = 2 * torch.rand(batch, channels, side, side, device=scale.device) - 1
        flow = Trumpet(channels, side, **small)
        steps, hidden = scale.pick((16, 256), (1, 8))
        glow = Glow(channels, side, 4, steps, hidden, coupling="affine", data_range=(-1.0, 1.0))
        losses = {"squared error": Reconstruction(), "latent likelihood": LatentLikelihood()}
        candidates = {
            f"TRUMPET, {name}": Candidate(flow, partial(negative, loss, flow))
            for name, loss in losses.items()
        }
        candidates[f"Glow, 4 levels x {steps} steps"] = Candidate(glow, glow.log_prob)
        peaks = {}
        for name, candidate in candidates.items():
            initialize(candidate, x)
            peaks[name] = activation_peak(candidate, x)
        calls = {name: partial(training_step, c, x) for name, c in candidates.items()}
        calls["TRUMPET, projection"] = torch.no_grad()(partial(flow.project, x))
        title = f"memory-flat training steps, {batch_text(x)}, latent of {flow.latent.size}"
        yield timed(title, scale.seconds(calls), next(reversed(candidates)), peaks)


def negative(loss: Loss, flow: Flow, x: Tensor) -> Tensor:
    """Minus the loss of images, as a step takes a log density."""
    return -loss(flow, x)[loss.monitor]


def inversions(scale: Scale) -> Iterator[Table]:
    """Inversions per minute by batch size, for blurred layer models."""
    from benchmarks.inversions import SIGMA, layer_data, ratio
    from flowprior.gaussianization import Gaussianization
    from flowprior.inversion import MAP, TotalVariation, invert

    flow = flowprior.load(ROOT / "weights" / "glow_layers_32", scale.device)
    sizes, iterations = scale.pick(((1, 16, 100), 20), ((1, 2), 2))
    _, y, physics = layer_data(max(sizes), 32, scale.device)
    layered = MAP(reparameterization=Gaussianization.robust())
    for name, prior, solver, most in [
        ("MAP", flow, MAP(), 3),
        ("total variation", None, TotalVariation(8.0), 3),
        ("MAP with layers", flow, layered, 2),
    ]:
        options = {"solver": solver, "sigma": SIGMA, "iterations": iterations}
        recover = partial(invert, prior, physics, image_shape=(1, 32, 32), **options)
        found = scale.seconds({str(n): partial(recover, y[:n]) for n in sizes}, most)
        each = {n: [seconds / int(n) for seconds in times] for n, times in found.items()}
        title = f"{name}, images 1x32x32, {iterations} iterations"
        table = Table("batch", "inversions per minute", "min s", "gain (range)", title=title)
        for n, times in each.items():
            cells = f"{60 / min(times):.0f}", f"{min(found[n]):.3g}", ratio(each["1"], times)
            table.add_row(n, *cells)
        yield table
    many = scale.pick(60, 2)
    for n in sizes:
        options = {"solver": MAP(), "sigma": SIGMA, "iterations": many}
        recover = partial(invert, flow, physics, y[:n], **options)
        calls = {"replayed as CUDA graphs": recover, "launched singly": _singly(recover)}
        title = f"MAP with CUDA graphs and without, {n} images 1x32x32, {many} iterations"
        yield timed(title, scale.seconds(calls, 2), next(iter(calls)))


def _singly(recover: Callable[[], Any]) -> Callable[[], Any]:
    from flowprior.inversion.cuda_graphs import no_cuda_graphs

    def call() -> Any:
        with no_cuda_graphs():
            return recover()

    return call


def sample(scale: Scale) -> Iterator[Table]:
    """Time per image of the flows of Chavez's table 2."""
    flows = sampling.flows_by_name(scale.device)
    for size in scale.pick((1, 64), (1,)):
        yield sampling.compared(flows, size, scale.pick(10, 1), scale.device)


def batch_text(x: Tensor) -> str:
    """Number and shape of images."""
    return f"batch {len(x)} of {'x'.join(map(str, x.shape[1:]))}"


def timed(
    title: str,
    seconds: dict[str, list[float]],
    base: str,
    peaks: dict[str, float] | None = None,
) -> Table:
    """Milliseconds of calls that took turns, ratios of the minima to one of them, and memory."""
    headings = ["", "min ms", "max ms", f"ratio to {base} (range)"]
    title = f"{title}; {len(seconds[base])} repeats"
    table = Table(*headings, *(["peak MiB"] if peaks else []), title=title)
    for name, times in seconds.items():
        each = sorted(a / b for a, b in zip(times, seconds[base], strict=True))
        ratio = f"{min(times) / min(seconds[base]):.3g} ({each[0]:.3g}–{each[-1]:.3g})"
        peak = [f"{peaks[name]:.0f}" if name in peaks else "–"] if peaks else []
        table.add_row(name, f"{1e3 * min(times):.3g}", f"{1e3 * max(times):.3g}", ratio, *peak)
    return table


PARTS: dict[str, tuple[Callable[[Scale], Iterator[Table]], int]] = {
    "tests": (tests, TESTS_LIMIT + 10),
    "glow_step": (glow_step, 95),
    "compiled": (compiled, 70),
    "gaussianization": (gaussianization, 35),
    "eikonal": (eikonal, 30),
    "trumpet": (trumpet, 45),
    "inversions": (inversions, 105),
    "sampling": (sample, 20),
}
"""Functions, and the most seconds that each may take: less than nine minutes together."""
