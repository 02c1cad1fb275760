"""The instances of the planner benchmark: seeded programs by family, all in natural program order.

Networks are in networks.py, training graphs in training_graphs.py; here are workflows, random
graphs and the list of everything. The same call gives the same program on every machine.
"""

from __future__ import annotations

import functools
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import networks
import networkx
import training_graphs
from program import Program, Recorder

KIB, MIB = 2**10, 2**20


@dataclass(frozen=True)
class Instance:
    """A program that is built when it is needed. `quick`: part of the small subset."""

    family: str
    build: Callable[[], Program]
    quick: bool = False


# --- scientific workflows -----------------------------------------------------------------------
# Shapes and mean sizes: Bharathi et al., Characterization of Scientific Workflows, WORKS 2008, and
# Juve et al., Characterizing and Profiling Scientific Workflows, FGCS 2013. Tasks come type by
# type, as a workflow manager lists them; inputs lie on disk and are read by the first task that
# needs them.


class WorkflowRecorder(Recorder):
    """Records tasks whose outputs vary around a mean size."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.random = random.Random(seed)

    def around(self, mean_bytes: float) -> int:
        """A lognormal size of about that mean."""
        return max(1, round(mean_bytes * self.random.lognormvariate(-0.125, 0.5)))

    def task(self, kind: str, reads: Sequence[int], mean_bytes: float) -> int:
        """A task with one output."""
        return self.op(kind, reads, self.around(mean_bytes))


def montage(images: int, seed: int) -> Program:
    """A mosaic of sky images: project, fit overlaps, correct backgrounds, add."""
    record = WorkflowRecorder(seed)
    projected = [
        record.ops("mProject", [], [record.around(4 * MIB), record.around(4 * MIB)])
        for _ in range(images)
    ]
    overlaps = [(i, j) for i in range(images) for j in range(i + 1, min(i + 4, images))]
    fits = [record.task("mDiffFit", [*projected[i], *projected[j]], 0.3 * MIB) for i, j in overlaps]
    model = record.task("mBgModel", [record.task("mConcatFit", fits, 0.1 * MIB)], 0.05 * MIB)
    corrected = [
        record.ops("mBackground", [*p, model], [record.around(4 * MIB), record.around(4 * MIB)])
        for p in projected
    ]
    table = record.task("mImgtbl", [c[0] for c in corrected], 0.1 * MIB)
    mosaic = record.task("mAdd", [*(b for c in corrected for b in c), table], 4 * images * MIB / 2)
    shrunken = record.task("mShrink", [mosaic], images * MIB / 16)
    record.keep(mosaic, record.task("mJPEG", [shrunken], images * MIB / 64))
    return record.program(f"montage_{images}_{seed}", "workflow")


def epigenomics(lanes: int, chunks: int, seed: int) -> Program:
    """DNA methylation: each lane is split, its chunks pass four steps, everything is merged."""
    record = WorkflowRecorder(seed)
    split = [
        record.ops("fastqSplit", [], [record.around(24 * MIB) for _ in range(chunks)])
        for _ in range(lanes)
    ]
    reads = [chunk for lane in split for chunk in lane]
    for kind, mean in (
        ("filterContams", 14 * MIB),
        ("sol2sanger", 12 * MIB),
        ("fastq2bfq", 3 * MIB),
        ("map", 1.5 * MIB),
    ):
        reads = [record.task(kind, [chunk], mean) for chunk in reads]
    lane_reads = [reads[i : i + chunks] for i in range(0, len(reads), chunks)]
    merged = [record.task("mapMerge", lane, 1.3 * MIB * chunks) for lane in lane_reads]
    everything = record.task("mapMerge", merged, 1.2 * MIB * chunks * lanes)
    index = record.task("maqIndex", [everything], MIB * chunks * lanes)
    record.keep(record.task("pileup", [index], 2 * MIB * chunks))
    return record.program(f"epigenomics_{lanes}x{chunks}_{seed}", "workflow")


def cybershake(sites: int, ruptures: int, seed: int) -> Program:
    """Seismic hazard: two large tensors a site, a seismogram and its peaks for every rupture."""
    record = WorkflowRecorder(seed)
    tensors = [
        record.ops("extractSGT", [], [record.around(150 * MIB), record.around(150 * MIB)])
        for _ in range(sites)
    ]
    grams = [record.task("synthesis", pair, 24 * KIB) for pair in tensors for _ in range(ruptures)]
    peaks = [record.task("peakValCalc", [gram], 4 * KIB) for gram in grams]
    zipped = record.task("zipSeis", grams, 20 * KIB * len(grams))
    record.keep(zipped, record.task("zipPSA", peaks, 3 * KIB * len(peaks)))
    return record.program(f"cybershake_{sites}x{ruptures}_{seed}", "workflow")


def inspiral(segments: int, group: int, seed: int) -> Program:
    """Search for gravitational waves: two rounds of heavy matched filtering, each compared."""
    record = WorkflowRecorder(seed)
    streams = [record.task("tmpltBank", [], 0.9 * MIB) for _ in range(segments)]
    for second in ("", "2"):
        found = [record.task(f"inspiral{second}", [bank], 0.3 * MIB) for bank in streams]
        groups = [found[i : i + group] for i in range(0, segments, group)]
        same = [record.task(f"thinca{second}", members, 0.1 * MIB) for members in groups]
        if not second:
            streams = [record.task("trigBank", [same[i // group]], MIB) for i in range(segments)]
    record.keep(*same)
    return record.program(f"inspiral_{segments}x{group}_{seed}", "workflow")


def fork_join(stages: int, width: int, seed: int) -> Program:
    """Stages of parallel chains between a split and a join; heavy stages have large outputs."""
    record = WorkflowRecorder(seed)
    joined = record.task("start", [], 4 * MIB)
    for stage in range(stages):
        mean = MIB / 4 if stage % 2 else 16 * MIB
        parts = [
            record.task("split", [joined], mean) for _ in range(record.random.randint(2, width))
        ]
        for _ in range(record.random.randint(1, 4)):
            parts = [record.task("step", [p], mean * record.random.uniform(0.2, 2)) for p in parts]
        joined = record.task("join", parts, 4 * MIB)
    record.keep(joined)
    return record.program(f"fork_join_{stages}x{width}_{seed}", "workflow")


# --- random graphs ------------------------------------------------------------------------------


def _from_parents(
    name: str, family: str, parents: Sequence[Sequence[int]], rng: random.Random
) -> Program:
    """One op and one buffer of 1 to 1000 KiB per node; an op in four has a workspace; what no op
    reads is a result."""
    record = Recorder()
    for reads in parents:
        size = rng.randint(1, 1000) * KIB
        workspace = rng.randint(1, 500) * KIB if rng.random() < 0.25 else 0
        record.op("op", reads, size, workspace_bytes=workspace)
    record.keep_unread()
    return record.program(name, family)


def _from_networkx(name: str, family: str, graph: networkx.Graph, rng: random.Random) -> Program:
    """Edges from the smaller to the larger number, which is the program order."""
    parents = [sorted(other for other in graph[node] if other < node) for node in sorted(graph)]
    return _from_parents(name, family, parents, rng)


def layered(ops: int, width: int, seed: int) -> Program:
    """Layers of equal width, written layer by layer; an op reads one to three of the last layer."""
    rng = random.Random(seed)
    parents: list[list[int]] = []
    for number in range(ops):
        layer = number // width
        last = range((layer - 1) * width, layer * width) if layer else range(0)
        parents.append(sorted(rng.sample(last, min(len(last), rng.randint(1, 3)))))
    return _from_parents(f"layered_{ops}x{width}_{seed}", "layered", parents, rng)


def erdos_renyi(ops: int, degree: float, seed: int) -> Program:
    """Every pair of ops is joined with the same probability."""
    graph = networkx.gnp_random_graph(ops, degree / (ops - 1), seed=seed)
    name = f"erdos_renyi_{ops}_{degree:g}_{seed}"
    return _from_networkx(name, "erdos_renyi", graph, random.Random(seed))


def barabasi_albert(ops: int, links: int, seed: int) -> Program:
    """Preferential attachment: every op reads that many earlier ones, popular ones more often."""
    graph = networkx.barabasi_albert_graph(ops, links, seed=seed)
    name = f"barabasi_albert_{ops}_{links}_{seed}"
    return _from_networkx(name, "barabasi_albert", graph, random.Random(seed))


def block_model(ops: int, blocks: int, seed: int) -> Program:
    """Dense blocks, sparsely joined; the ops of all blocks are written interleaved."""
    rng = random.Random(seed)
    size = ops // blocks
    inside, between = 3 / size, 0.5 / ops
    chances = [[inside if a == b else between for b in range(blocks)] for a in range(blocks)]
    graph = networkx.stochastic_block_model([size] * blocks, chances, seed=seed)
    places = list(range(size * blocks))
    rng.shuffle(places)
    shuffled = networkx.relabel_nodes(networkx.Graph(graph.edges), dict(enumerate(places)))
    shuffled.add_nodes_from(places)
    return _from_networkx(f"block_model_{ops}x{blocks}_{seed}", "block_model", shuffled, rng)


def series_parallel(ops: int, degree: int, seed: int) -> Program:
    """A random series-parallel graph in which at most `degree` ops read a buffer.

    A part is one op, two parts in series, or a fork, two to `degree` parts and a join. Ops are
    written level by level, as code does that treats all branches alike.
    """
    rng = random.Random(seed)
    succs: list[list[int]] = []

    def node() -> int:
        succs.append([])
        return len(succs) - 1

    def part(size: int) -> tuple[int, int]:
        """The first and the last op of a part."""
        if size == 1:
            single = node()
            return single, single
        if size < 4 or rng.random() < 0.5:
            cut = rng.randint(1, size - 1)
            (first, end), (start, last) = part(cut), part(size - cut)
            succs[end].append(start)
            return first, last
        fork = node()
        branches = _shares(size - 2, rng.randint(2, min(degree, size - 2)), rng)
        ends = [part(share) for share in branches]
        join = node()
        succs[fork] += [first for first, _ in ends]
        for _, last in ends:
            succs[last].append(join)
        return fork, join

    part(ops)
    parents = _level_by_level(succs)
    return _from_parents(
        f"series_parallel_{ops}_{degree}_{seed}", f"series_parallel_{degree}", parents, rng
    )


def _shares(total: int, parts: int, rng: random.Random) -> Iterator[int]:
    """Random positive shares of a total."""
    cuts = sorted(rng.sample(range(1, total), parts - 1))
    bounds = [0, *cuts, total]
    return (end - start for start, end in itertools.pairwise(bounds))


def _level_by_level(succs: Sequence[Sequence[int]]) -> list[list[int]]:
    """Parents of every op in first-in first-out topological order, by the new numbers."""
    waiting = [0] * len(succs)
    for targets in succs:
        for target in targets:
            waiting[target] += 1
    order = [op for op, count in enumerate(waiting) if not count]
    parents: list[list[int]] = [[] for _ in succs]
    for number, op in enumerate(order):  # grows while it is read
        for target in succs[op]:
            parents[target].append(number)
            waiting[target] -= 1
            if not waiting[target]:
                order.append(target)
    return [parents[op] for op in order]


# --- everything ---------------------------------------------------------------------------------


def _nas() -> Iterator[Callable[[], Program]]:
    nasnet = functools.partial(
        networks.nasnet_like,
        normal=networks.NASNET_NORMAL,
        reduction=networks.NASNET_REDUCTION,
    )
    amoebanet = functools.partial(
        networks.nasnet_like,
        normal=networks.AMOEBANET_NORMAL,
        reduction=networks.AMOEBANET_REDUCTION,
    )
    pnasnet = functools.partial(
        networks.nasnet_like, normal=networks.PNASNET, reduction=networks.PNASNET, inserted=False
    )
    yield functools.partial(nasnet, "nasnet_a_cifar", side=32, cells=18, channels=32, stem=96)
    yield functools.partial(nasnet, "nasnet_a_mobile", side=224, cells=12, channels=44, stem=32)
    yield functools.partial(nasnet, "nasnet_a_large", side=331, cells=18, channels=168, stem=96)
    yield functools.partial(
        amoebanet, "amoebanet_a_cifar", side=32, cells=18, channels=36, stem=108
    )
    yield functools.partial(
        amoebanet, "amoebanet_a_imagenet", side=331, cells=18, channels=190, stem=96
    )
    yield functools.partial(pnasnet, "pnasnet_5_cifar", side=32, cells=9, channels=48, stem=144)
    yield functools.partial(pnasnet, "pnasnet_5_mobile", side=224, cells=9, channels=54, stem=32)
    yield functools.partial(pnasnet, "pnasnet_5_large", side=331, cells=12, channels=216, stem=96)
    yield functools.partial(networks.darts, "darts_v2_cifar", imagenet=False)
    yield functools.partial(networks.darts, "darts_v2_imagenet", imagenet=True)


def _recurrent() -> Iterator[tuple[str, Callable[[], Program]]]:
    for kind in ("lstm", "gru"):
        for layers, steps in ((2, 8), (3, 16), (4, 32)):
            for layer_major in (True, False):
                for every_step in (True, False):
                    yield (
                        kind,
                        functools.partial(
                            networks.recurrent,
                            kind,
                            layers,
                            steps,
                            layer_major=layer_major,
                            every_step=every_step,
                        ),
                    )


def _training() -> Iterator[tuple[str, Callable[[], Program]]]:
    for depth in (4, 16, 64, 128):
        yield "mlp", functools.partial(training_graphs.mlp, depth)
    for widths in (
        ((32,), (64,), (128,)),
        ((64,), (128,), (256, 256), (512, 512), (512, 512)),
        ((64, 64), (128, 128), (256,) * 3, (512,) * 3, (512,) * 3),
        ((64, 64), (128, 128), (256,) * 8, (512,) * 8, (512,) * 8),
    ):
        yield "cnn", functools.partial(training_graphs.cnn, widths)
    for name, blocks in (
        ("resnet_train_152", (3, 8, 36, 3)),
        ("resnet_train_200", (3, 24, 36, 3)),
        ("resnet_train_353", (3, 40, 70, 4)),
    ):
        yield "resnet", functools.partial(training_graphs.resnet, name, blocks)
    for name, blocks, growth in (
        ("densenet_train_121", (6, 12, 24, 16), 32),
        ("densenet_train_169", (6, 12, 32, 32), 32),
        ("densenet_train_161", (6, 12, 36, 24), 48),
    ):
        yield "densenet", functools.partial(training_graphs.densenet, name, blocks, growth=growth)


def _workflows() -> Iterator[Callable[[], Program]]:
    for seed, images in enumerate((25, 50, 90)):
        yield functools.partial(montage, images, seed)
    for seed, (lanes, chunks) in enumerate(((2, 12), (4, 15), (7, 16))):
        yield functools.partial(epigenomics, lanes, chunks, seed)
    for seed, (sites, ruptures) in enumerate(((2, 25), (4, 30), (5, 48))):
        yield functools.partial(cybershake, sites, ruptures, seed)
    for seed, (segments, group) in enumerate(((24, 4), (60, 5), (110, 11))):
        yield functools.partial(inspiral, segments, group, seed)
    for seed, (stages, width) in enumerate(((8, 8), (12, 12), (16, 16), (24, 10))):
        yield functools.partial(fork_join, stages, width, seed)


def _random() -> Iterator[tuple[str, Callable[[], Program]]]:
    for seed, (ops, width) in enumerate(
        ((100, 8), (150, 25), (200, 10), (300, 16), (400, 20), (500, 50))
    ):
        yield "layered", functools.partial(layered, ops, width, seed)
    for seed, (ops, degree) in enumerate(
        ((100, 3), (150, 5), (200, 4), (300, 3), (400, 6), (500, 4))
    ):
        yield "erdos_renyi", functools.partial(erdos_renyi, ops, degree, seed)
    for seed, (ops, links) in enumerate(
        ((100, 2), (150, 1), (200, 2), (300, 3), (400, 2), (500, 3))
    ):
        yield "barabasi_albert", functools.partial(barabasi_albert, ops, links, seed)
    for seed, (ops, blocks) in enumerate(
        ((100, 5), (150, 10), (200, 8), (300, 10), (400, 20), (500, 10))
    ):
        yield "block_model", functools.partial(block_model, ops, blocks, seed)


def _branches() -> Iterator[tuple[str, Callable[[], Program]]]:
    for layers, experts in ((1, 8), (4, 16), (6, 32)):
        yield "moe", functools.partial(networks.mixture_of_experts, layers, experts)
    for experts in (16, 64):
        yield "moe", functools.partial(networks.switch_layer, experts)
    for shared in (True, False):
        kind = "heads" if shared else "views"
        for count in (6, 24):
            equal = [(128, 256, 64)] * count
            yield (
                "towers",
                functools.partial(networks.towers, f"towers_{kind}_{count}", equal, shared=shared),
            )
            rng = random.Random(count)
            mixed = [
                tuple(16 * rng.randint(1, 32) for _ in range(rng.randint(2, 6)))
                for _ in range(count)
            ]
            yield (
                "towers",
                functools.partial(
                    networks.towers, f"towers_{kind}_mixed_{count}", mixed, shared=shared
                ),
            )


def _all() -> Iterator[tuple[str, Callable[[], Program]]]:
    yield from (("nas", build) for build in _nas())
    for nodes in (10, 16, 20, 24, 32, 40, 48, 64):
        for seed in range(4 if nodes < 32 else 2):
            yield "randwire", functools.partial(networks.randwire, nodes, seed, imagenet=False)
    for nodes in (32, 40, 48, 64):
        yield "randwire", functools.partial(networks.randwire, nodes, 0, imagenet=True)
    yield from _recurrent()
    yield from _training()
    yield from (("workflow", build) for build in _workflows())
    yield from _random()
    yield from _branches()
    for degree in (3, 8):
        for ops in (100, 200, 500, 1000, 2000, 5000):
            yield (
                f"series_parallel_{degree}",
                functools.partial(series_parallel, ops, degree, ops + degree),
            )


def instances() -> list[Instance]:
    """Every instance; the first of each family makes up the quick subset."""
    seen: set[str] = set()
    found = []
    for family, build in _all():
        found.append(Instance(family, build, quick=family not in seen))
        seen.add(family)
    return found
