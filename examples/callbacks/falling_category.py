"""Stops a run when one category gets worse, even if the overall value improves: the model forgets."""

from lightning import Callback


class StopWhenACategoryFalls(Callback):
    """Stops training when a category's exact match drops below its best value by more than a margin.

    Args:
        margin: Tolerated drop.
        least: Minimum number of turns in a category.
    """

    def __init__(self, margin: float = 0.1, least: int = 5):
        self.margin, self.least = margin, least
        self.best: dict[str, float] = {}

    def on_tool_calls_evaluated(self, trainer, pl_module, evaluated):
        """Compare each category with its best value."""
        if trainer.sanity_checking:
            return
        for category in sorted({turn.category for turn in evaluated}):
            right = [turn.exact_match for turn in evaluated if turn.category == category]
            share = sum(right) / len(right)
            self.best[category] = max(share, self.best.get(category, 0.0))
            if len(right) >= self.least and share < self.best[category] - self.margin:
                trainer.should_stop = True  # every rank has all turns, so all ranks stop
                if trainer.is_global_zero:
                    print(f"stopped: {category or 'no category'} fell from {self.best[category]:.3f} to {share:.3f}")
