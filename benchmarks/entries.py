"""What `python -m benchmarks gpu` measures, the most telling first: each benchmark's command, in full and with tiny sizes."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Entry:
    """A benchmark of the list, in full and with tiny sizes.

    module, full, quick  the command: python -m module, then the flags of one of the two
    writes               flag → the file or folder in the results' folder that it names
    result               what must be there in the end, and is removed before a new try; "" for nothing
    programs             flags of a short run that compiles all that the full one will; "" for none
    charts               the same, where there is matplotlib
    reads                flag → the file or folder there that another entry, `after`, has left
    kernels              whether it is of kernels alone: without --data and --device, and only with a CUDA device
    """

    name: str
    asks: str
    module: str
    full: str
    quick: str
    writes: dict[str, str]
    result: str
    most: float
    least: float = 60.0
    charts: dict[str, str] = field(default_factory=dict)
    programs: str = ""
    reads: dict[str, str] = field(default_factory=dict)
    after: str = "machine"
    kernels: bool = False


TINY = "--limit 128 --batch-size 16"
LONG = "--no-compiled --recorded --eval-every 50 --no-report"  # eager kernels in a graph: compiling three nets would take longer than it gains
FEW = f"{TINY} --pipelines resident torchvision"
AROUND = (  # settings of `speed` that the host decides, and how far around them: all trials share a recorded step
    "muon_lr=0.12..0.3 lr=40..160 head_lr=500..1800 warmup=0..2.5 epochs=8..11 grown=0.35..0.65 freeze=0.55..1 translate=1..3 first_side=16,20"
)
SHAPES = (  # the three chosen, and by their widths, sizes, blocks and times others of no more parameters
    "tiny25k tiny_16-24-40_2-3-2_2 tiny50k tiny_24-40-48_2-3-3 tiny_24-56x2_3-3_2 tiny83k tiny_24-80x2_3-3_2 tiny_32-88x2_3-2_2"
)
ENTRIES = (
    Entry(
        "speed",
        "How many seconds to which accuracy, beside the speed records' scripts?",
        "benchmarks.time_to_accuracy",
        full="speed --runs 10 --no-report",
        quick="level1 --epochs 1 --limit 128 --runs 2 --no-report",
        programs="speed --runs 1 --no-report",
        writes={"--out": "speed"},
        result="speed/result.json",
        most=600,
    ),
    Entry(
        "together",
        "How many trainings of a tiny net an hour, one at a time and eight as one program? Steps recorded, not compiled: no minutes of compiling.",
        "benchmarks.together",
        full="modern --net tiny83k --recorded --limit 49920 --steps 100",  # whole batches: a last one would have cuDNN try all kernels again
        quick=f"modern --net tiny83k --steps 2 --passes 1 {TINY}",
        writes={"--json": "together.json"},
        result="together.json",
        most=200,
    ),
    Entry(
        "blocks",
        "How long do the kernels of a tiny net's block take, with how much room each?",
        "benchmarks.blocks",
        full="",
        quick="--channels 8 --sides 8 --batch-size 8",
        writes={"--json": "blocks.json"},
        result="blocks.json",
        most=300,
        kernels=True,
    ),
    Entry(
        "search",
        "What does each setting of `speed` give, and what does it cost?",
        "benchmarks.search",
        full=f"speed --precision bf16 --held-out 6000 --trials 600 --stop-after 4 --vary {AROUND}",
        quick="level1 --epochs 1 --limit 128 --trials 6 --vary lr=0.001..0.1 label_smoothing=0..0.2",
        writes={"--out": "search"},
        result="search/search.json",
        most=360,
    ),
    Entry(
        "loaders",
        "How many images a second does each loader give, beside a plain copy?",
        "benchmarks.loaders",
        full="--batch-sizes 512 5000 50000 --dtypes float16",
        quick="--batch-sizes 64 --dtypes float32 --limit 128 --passes 1 --only resident reference",
        writes={"--json": "loaders.json"},
        charts={"--chart": "loaders.png"},
        result="loaders.json",
        most=480,
    ),
    Entry(
        "training",
        "How accurate is the default recipe, and how long does it take?",
        "train",
        full="default",
        quick="level1 --epochs 1 --limit 128",
        writes={"--out": "training"},
        result="training/summary.json",
        least=30,
        most=300,
    ),
    Entry(
        "breakdown",
        "Where does a training step's time go, through each pipeline?",
        "benchmarks.breakdown",
        full="--net quick --steps 0",
        quick=f"--steps 2 --first 1 --rounds 1 {FEW}",
        writes={"--json": "breakdown.json"},
        charts={"--chart": "breakdown.png"},
        result="breakdown.json",
        most=300,
    ),
    Entry(
        "epoch_time",
        "How long does an epoch of the full set take through each pipeline?",
        "benchmarks.epoch_time",
        full="--net quick --epochs 5",
        quick=f"--epochs 2 --passes 1 {FEW}",
        writes={"--json": "epoch_time.json"},
        charts={"--chart": "epoch_time.png"},
        result="epoch_time.json",
        most=400,
    ),
    Entry(
        "together_compiled",
        "The same trainings an hour, with steps compiled, which takes minutes for eight nets.",
        "benchmarks.together",
        full="modern --net tiny83k --compiled --limit 49920 --steps 100",
        quick=f"modern --net tiny83k --steps 1 --passes 1 --sizes 1 {TINY}",
        writes={"--json": "together_compiled.json"},
        result="together_compiled.json",
        most=400,
    ),
    Entry(
        "speed_50",
        "The same with fifty seeds: those that are there are kept.",
        "benchmarks.time_to_accuracy",
        full="speed --runs 50 --no-report",
        quick="level1 --epochs 1 --limit 128 --runs 3 --no-report",
        writes={"--out": "speed"},
        result="",
        most=600,
    ),
    Entry(
        "frontier",
        "Which tiny net for 25,000, 50,000 and 83,368 parameters: those that were chosen, or some that use their filters at one size or two? Held out of train.",
        "benchmarks.pareto",
        full=f"modern --head-lr 0.5 --epochs 20 --held-out 5000 --nets {SHAPES} {LONG}",
        quick=f"modern --nets tiny10k tiny_8-8_1-1_2 --epochs 1 --no-report {TINY}",
        writes={"--out": "frontier"},
        result="frontier/pareto.md",
        most=400,
    ),
    Entry(
        "few",
        "How accurate are the tiny nets after the 200 epochs that are made for them?",
        "benchmarks.pareto",
        full=f"tiny --nets tiny83k tiny50k tiny25k {LONG}",
        quick=f"tiny --nets tiny10k --epochs 1 --no-report {TINY}",
        writes={"--out": "few"},
        result="few/pareto.md",
        most=500,
    ),
    Entry(
        "teacher",
        "How accurate are three of the default's nets without label smoothing, which would take from their predictions what a smaller net learns of them?",
        "train",
        full="default --label-smoothing 0 --runs 3 --no-report",
        quick="level1 --epochs 1 --limit 128 --runs 2 --no-report",
        writes={"--out": "teacher"},
        result="teacher/summary.json",
        least=30,
        most=120,
    ),
    Entry(
        "taught",
        "How accurate are tiny nets that also learn what those three predict, on the whole? Not to be mixed with the untaught.",
        "benchmarks.pareto",
        full=f"tiny --nets tiny50k tiny_24-40-48_2-3-3 tiny25k {LONG}",
        quick=f"tiny --nets tiny10k --epochs 1 --no-report {TINY}",
        writes={"--out": "taught"},
        result="taught/pareto.md",
        most=500,
        reads={"--teacher": "teacher"},
        after="teacher",
    ),
    Entry(
        "anchor",
        "How accurate is the net of others that they are measured against, five seeds each, by our recipe and after as many epochs?",
        "benchmarks.pareto",
        full="modern --epochs 20 --runs 5 --nets tiny83k tiniest --compiled --no-report",
        quick=f"modern --nets tiny10k --epochs 1 --no-report {TINY}",
        writes={"--out": "anchor"},
        result="anchor/pareto.md",
        most=420,
    ),
    Entry(
        "anchor_own",
        "And by its own recipe, shortened alike?",
        "benchmarks.pareto",
        full="tiniest --epochs 20 --warmup 6 --mix-ramp 20 --runs 5 --nets tiniest --compiled --no-report",
        quick=f"tiniest --nets tiny10k --epochs 1 --no-report {TINY}",
        writes={"--out": "anchor_own"},
        result="anchor_own/pareto.md",
        most=420,
    ),
)
