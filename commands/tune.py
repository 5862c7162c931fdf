"""`lite-probe tune`: what LITE's settings should be, learned over data shards that stay where they are."""

from lite_probe.commands.optimizers import OptimizersMeasuring


class TuneMeasuring(OptimizersMeasuring):
    """Learn LITE's settings from the landscape, over data that stays where it is.

    Each node holds a shard of the data and measures on it, and no other, how far the loss tolerates steps along each
    group of directions. By decentralized bilevel optimization the nodes agree on χ and β₂; a replay with paired seeds
    then says whether that pays. Killed or interrupted, the same command continues.
    """

    kind = "tuning"
    examples = (
        "tune runs/gpt/ckpt.pt --data val.bin --nodes 8 --topology ring --method sparkle --upper gt --lower ed",
    )


command = TuneMeasuring.command()
