"""The command `align`. Nothing heavy is imported before a command runs."""

import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer

from prompts.io.errors import UserError
from prompts.io.files import writable

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Train one- and few-step text-to-image generators.",
)

Preset = Annotated[
    str,
    typer.Argument(
        help="A preset ('align presets' lists them), or a YAML file of your own with the key base or stage."
    ),
]
ConfigFile = Annotated[Optional[Path], typer.Option("--config", metavar="FILE", help="YAML laid over the preset.")]
Sets = Annotated[
    Optional[list[str]],
    typer.Option("--set", metavar="KEY=VALUE", help="One value laid over all else, e.g. student.learning_rate=1e-4."),
]
Gradients = Annotated[
    Optional[list[str]],
    typer.Option("--gradient", help="exact, exact_sequential or detached alone; may be repeated."),
]
Counted = Annotated[
    Optional[Path],
    typer.Option("--counted", metavar="FILE", help="Operations from what --count wrote, not counted again."),
]
STEPS, ROUNDS = 5, 1  # of a benchmark, unless it is told
Output = Annotated[
    Optional[Path],
    typer.Option(
        "--output", metavar="DIR", help="Run folder; by default runs/PRESET, or runs/ and the name of a file."
    ),
]
Resume = Annotated[bool, typer.Option("--resume", help="Continue from the newest whole state of the run folder.")]


@app.command()
def train(
    preset: Preset,
    config: ConfigFile = None,
    sets: Sets = None,
    output: Output = None,
    resume: Resume = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the resolved config, estimate the GPU memory it needs, and stop.")
    ] = False,
    gpu_memory: Annotated[
        Optional[float],
        typer.Option(
            "--gpu-memory", metavar="GIB", min=0, help="With --dry-run: what a GPU has; by default the one available."
        ),
    ] = None,
    processes: Annotated[
        Optional[int],
        typer.Option("--processes", min=1, help="With --dry-run: how many GPUs; by default as many as were launched."),
    ] = None,
) -> None:
    """Align or distil a one- or few-step generator: Diff-Instruct, SIM, Diff-Instruct++ or Diff-Instruct*."""
    from align import commands as runs
    from align.config.train import TRAIN
    from align.options import dump
    from align.presets.load import name_of, origin_of, resolve

    resolved: Any = resolve(preset, TRAIN, config=config, sets=sets or ())
    if not dry_run and (gpu_memory is not None or processes is not None):
        raise UserError("--gpu-memory and --processes belong to --dry-run; add that, or leave them out")
    if dry_run:
        print(dump(resolved), end="", flush=True)
        runs.dry_run(resolved, processes=processes, gpu_memory=gpu_memory)
        return
    if not runs.train(resolved, output or Path("runs") / name_of(preset), resume=resume, preset=origin_of(preset)):
        raise typer.Exit(130)


@app.command()
def pretrain(
    preset: Preset,
    config: ConfigFile = None,
    sets: Sets = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Train the parts of an embedded world: autoencoder, reference diffusion model, CLIP."""
    from align import commands as runs
    from align.presets.load import name_of, resolve
    from align.world.config import PRETRAIN

    resolved: Any = resolve(preset, PRETRAIN, config=config, sets=sets or ())
    if not runs.pretrain(resolved, output or Path("runs") / name_of(preset), resume=resume):
        raise typer.Exit(130)


@app.command()
def reward(
    pairs: Annotated[
        Path,
        typer.Option(
            "--pairs",
            metavar="FILE",
            help="JSON lines with the keys prompt, preferred, rejected; the last two are image files.",
        ),
    ],
    preset: Preset = "shapes-preference",
    config: ConfigFile = None,
    sets: Sets = None,
    output: Output = None,
    resume: Resume = False,
) -> None:
    """Train a preference model on pairs of images of one prompt (Bradley-Terry)."""
    from align import commands as runs
    from align.presets.load import name_of, resolve
    from align.world.config import REWARD

    resolved: Any = resolve(preset, REWARD, config=config, sets=sets or ())
    if not runs.reward(resolved, pairs, output or Path("runs") / name_of(preset), resume=resume):
        raise typer.Exit(130)


@app.command()
def sample(
    checkpoint: Annotated[
        str, typer.Argument(help="An embedded model (shapes/aligned), a folder that diffusers loads, or a hub id.")
    ],
    prompt: Annotated[
        list[str], typer.Option("--prompt", metavar="TEXT", help="What to draw; give it more than once for more.")
    ],
    output: Annotated[Path, typer.Option("--output", metavar="FILE", help="The PNG to write.")] = Path("sample.png"),
    n: Annotated[int, typer.Option("--n", min=1, help="Images per prompt.")] = 4,
    seed: Annotated[int, typer.Option("--seed", min=0)] = 0,
) -> None:
    """Draw images from a checkpoint, one row per prompt."""
    from align import commands as runs

    runs.sample(checkpoint, prompt, output, n=n, seed=seed)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run folder, or a checkpoint folder.")],
    output: Annotated[Optional[Path], typer.Option("--output", metavar="DIR", help="The folder to write.")] = None,
    dtype: Annotated[
        Optional[str],
        typer.Option("--dtype", help="fp32, fp16 or bf16; by default bf16 for flow matching, else fp16."),
    ] = None,
    pipeline: Annotated[
        Optional[str],
        typer.Option(
            "--pipeline",
            metavar="MODEL",
            help="Write the network alone, and a recipe that takes all else from this folder or hub id.",
        ),
    ] = None,
    lora: Annotated[
        bool, typer.Option("--lora", help="Write the LoRA alone, and a recipe that says what it belongs over.")
    ] = False,
    scores: Annotated[
        Optional[Path],
        typer.Option("--scores", metavar="CSV", help="Put this leaderboard's rows of the model into its card."),
    ] = None,
    push_to: Annotated[
        Optional[str],
        typer.Option("--push-to-hub", metavar="OWNER/NAME", help="Put it on the hub, which needs no --output."),
    ] = None,
    private: Annotated[bool, typer.Option("--private", help="Where the repository is new, for you alone.")] = False,
) -> None:
    """Copy a run's checkpoint in another precision: whole, the bare network or its LoRA, to a folder or the hub."""
    from align import commands as runs

    runs.export(run, output, dtype=dtype, pipeline=pipeline, lora=lora, scores=scores, push_to=push_to, private=private)


@app.command()
def presets() -> None:
    """List the presets."""
    from align import commands as runs

    runs.list_presets()


@app.command()
def bench(
    preset: Annotated[str, typer.Argument(help="A preset of 'align train', or a file in its place.")] = "shapes-distar",
    sets: Sets = None,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Timed steps, after two that are not counted.")] = STEPS,
    rounds: Annotated[
        int, typer.Option("--rounds", min=1, help="Times that each is measured, by turns; medians are shown.")
    ] = ROUNDS,
    roles: Annotated[Optional[list[str]], typer.Option("--roles", help="full or lora alone.")] = None,
    gradients: Gradients = None,
    random_weights: Annotated[
        bool,
        typer.Option(
            "--random-weights", help="Initialise the weights at random: only configs and tokenizers are needed."
        ),
    ] = False,
    plain: Annotated[
        bool,
        typer.Option(
            "--plain", help="Beside a plain implementation: three full copies, autograd through all, no caching."
        ),
    ] = False,
    count: Annotated[
        bool,
        typer.Option("--count", help="Time nothing: count operations and memory beside the plain one, without a GPU."),
    ] = False,
    counted: Counted = None,
    output: Annotated[
        Optional[Path],
        typer.Option("--output", metavar="FILE", help="JSON to write; without it and --leaderboards it is printed."),
    ] = None,
    leaderboards: Annotated[
        Optional[Path], typer.Option("--leaderboards", metavar="DIR", help="Where training.csv is, to write rows of.")
    ] = None,
) -> None:
    """Time a step, and measure its memory, for every gradient mode and storage of roles."""
    from align.bench import count as counting
    from align.bench import step as timing
    from align.config.train import TRAIN
    from align.presets.load import resolve

    resolved: Any = resolve(preset, TRAIN, sets=sets or ())
    chosen: dict[str, Any] = {"sets": sets or (), "roles": roles or (), "gradients": gradients or (), "output": output}
    if output:
        writable(output)
    if count:
        timed = {"--leaderboards": leaderboards, "--counted": counted, "--random-weights": random_weights}
        counting.check_untimed(timed | {"--plain": plain, "--steps": steps != STEPS, "--rounds": rounds != ROUNDS})
        counting.count(resolved, preset, **chosen)
        return
    timing.bench(
        resolved,
        preset,
        steps=steps,
        rounds=rounds,
        random_weights=random_weights,
        plain=plain,
        counted=counted,
        leaderboards=leaderboards,
        **chosen,
    )


@app.command()
def sweep(
    preset: Preset,
    config: ConfigFile = None,
    sets: Sets = None,
    output: Output = None,
    processes: Annotated[
        int, typer.Option("--processes", min=1, help="Runs at a time, each on a thread of its own.")
    ] = 2,
    table: Annotated[
        Optional[Path],
        typer.Option("--table", metavar="DIR", help="Run nothing: write the table of what is finished there."),
    ] = None,
    begun: Annotated[
        Optional[Path],
        typer.Option("--from", metavar="DIR", help="A table of this sweep: what it has is not run again."),
    ] = None,
    measure_again: Annotated[
        bool,
        typer.Option("--measure-again", help="Where `measure` has changed: measure finished runs anew, untrained."),
    ] = False,
) -> None:
    """Train an ablation's cells with several seeds, and write its table and curves; continue where it was left."""
    from align.ablation import sweep as sweeps
    from align.ablation.config import SWEEP
    from align.ablation.table import write
    from align.presets.load import name_of, resolve

    resolved: Any = resolve(preset, SWEEP, config=config, sets=sets or ())
    folder = output or Path("runs") / name_of(preset)
    if begun is not None:
        sweeps.take(resolved, folder, begun)
    if table is None and not sweeps.sweep(resolved, folder, processes=processes, measure_again=measure_again):
        raise typer.Exit(130)
    write(resolved, sweeps.results(resolved, folder), preset, table or folder)


@app.command()
def world(
    work: Annotated[
        Path,
        typer.Option("--work", metavar="DIR", help="Where the stages run; what is there already is not run again."),
    ] = Path("runs/world"),
    output: Annotated[
        Path, typer.Option("--output", metavar="DIR", help="Where the finished weights and their card go.")
    ] = Path("world"),
) -> None:
    """Make the embedded world `shapes` again, from its seeds: hours on two cores."""
    from align.world.build import build

    build(work, output)


@app.callback()
def _check_environment() -> None:
    from evaluate.environment import check

    check()


def main() -> None:
    """Entry point: a user's error is one sentence on stderr and exit code 2."""
    try:
        app()
    except UserError as error:
        from prompts.io.hub import redact

        print(f"align: {redact(str(error))}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":  # for torchrun -m align.cli
    main()
