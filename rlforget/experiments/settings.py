"""What the demo runs: lengths, learning rates, sample counts."""

from __future__ import annotations

from dataclasses import dataclass

SEQUENCE = ("code", "math", "qa", "writing")
EARLIER, LATER = ("code", "math"), ("qa", "writing")  # restored, and protected
TARGET = SEQUENCE[-1]  # what SFT and RL are both trained on, from the stage before it, to the same reward


@dataclass(frozen=True)
class Settings:
    """One form of the demo.

    Attributes:
        steps: GRPO steps of each stage of the sequence.
        learning_rates: Of each stage. The last is what makes the sequence hurt: at 1e-3 little is lost.
        evaluation_prompts: Prompts a domain in every evaluation, used for nothing else.
        samples: Completions a domain for the Fishers and for the conflict subspace.
        damage_samples: Completions a domain for the damage, tensor by tensor, and for the directions that it lies in.
        refresh_steps: GRPO steps of the refresh of each earlier domain.
        refresh_rate: Its learning rate.
        target_reward: Sampled training reward on the target domain at which SFT and RL both stop.
    """

    steps: tuple[int, ...] = (60, 60, 60, 120)
    learning_rates: tuple[float, ...] = (1e-3, 1e-3, 1e-3, 2e-3)
    evaluation_prompts: int = 1024
    samples: int = 512
    damage_samples: int = 128
    refresh_steps: int = 10
    refresh_rate: float = 1e-3
    target_reward: float = 0.98


FULL = Settings()
FAST = Settings(steps=(20, 20, 20, 60), evaluation_prompts=256, samples=96, damage_samples=48, target_reward=0.9)
