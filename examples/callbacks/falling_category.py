"""Ends a run when one category gets worse, though the whole gets better: a recipe that forgets is not a good one."""

from lightning import Callback


class StopWhenACategoryFalls(Callback):
    """Stops training when a category's exact match falls below its best by more than a margin.

    Args:
        margin: How far it may fall.
        least: Turns that a category must have to count.
    """

    def __init__(self, margin: float = 0.1, least: int = 5):
        self.margin, self.least = margin, least
        self.best: dict[str, float] = {}

    def on_tool_calls_evaluated(self, trainer, pl_module, evaluated):
        """Compare each category with its best."""
        if trainer.sanity_checking:
            return
        for category in sorted({turn.category for turn in evaluated}):
            right = [turn.exact_match for turn in evaluated if turn.category == category]
            share = sum(right) / len(right)
            self.best[category] = max(share, self.best.get(category, 0.0))
            if len(right) >= self.least and share < self.best[category] - self.margin:
                trainer.should_stop = True  # every rank sees the same turns and comes to the same end
                if trainer.is_global_zero:
                    print(f"stopped: {category or 'no category'} fell from {self.best[category]:.3f} to {share:.3f}")
