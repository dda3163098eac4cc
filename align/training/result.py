"""What is left of a run: the averaged weights as a pipeline, with its card."""

from align.data.text_embeddings import restore
from align.export.card import run_metadata
from align.export.pipeline import export
from align.networks.lora import adapter, merged
from align.training.setup import Run


def finish(run: Run, step: int) -> None:
    """Write `checkpoint` of the run's folder: the average as it is after `step`. Every process must call it."""
    with run.average.applied():
        weights, added = merged(run.roles.student), adapter(run.roles.student)
        if run.process.main:
            network = run.preconditioning.family.network
            restore(run.pipeline, run.config.pipeline or run.config.reference, network=network)
            metadata = run_metadata(
                run.config,
                step=step,
                prompts=run.batches.prompts,
                example=run.example,
                protocols={name: scorer.protocol for name, scorer in run.rewards.scorers.items()},
                processes=run.process.world,
                device=run.process.device,
            )
            scheduler, recipe = run.generator.export(run.pipeline.scheduler)
            export(
                run.config, run.pipeline, scheduler, recipe, weights, run.folder, adapter=added, run_metadata=metadata
            )
    run.process.wait()
