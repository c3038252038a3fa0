"""The science domain: the mass of a molecule, from a table of its elements."""

from __future__ import annotations

import random

from rlforget.domains.base import Example, GeneratedDomain, share_right

ELEMENTS = "HCNOFPSK"


class Science(GeneratedDomain):
    """`SH1O6C2:OHC=` is answered by `679`: the running mass of the molecule O, H, C, modulo 10.

    The counterfactual swaps the answer key (two masses in the table) or the molecule, as the counterfactuals of
    2605.28860 do.
    """

    name = "science"
    max_new_tokens = 5
    elements = 3
    atoms = 3

    def draw(self, rng: random.Random) -> Example:
        """Draw a table, a molecule and a counterfactual whose answer differs."""
        elements = rng.sample(ELEMENTS, self.elements)
        masses = rng.sample(range(1, 10), self.elements)
        molecule = [rng.choice(elements) for _ in range(self.atoms)]
        prompt, answer = _molecule(elements, masses, molecule)
        while True:
            if rng.random() < 0.5:
                other = _molecule(elements, rng.sample(masses, self.elements), molecule)
            else:
                swapped = dict(zip(elements, rng.sample(elements, self.elements), strict=True))
                other = _molecule(elements, masses, [swapped[atom] for atom in molecule])
            if other[1] != answer:
                return Example(prompt, answer, *other)

    def reward(self, example: Example, completion: str) -> float:
        """Share of the running masses that are right."""
        return share_right(example.answer, completion)


def _molecule(elements: list[str], masses: list[int], molecule: list[str]) -> tuple[str, str]:
    mass_of = dict(zip(elements, masses, strict=True))
    total, results = 0, []
    for atom in molecule:
        total = (total + mass_of[atom]) % 10
        results.append(str(total))
    table = "".join(f"{element}{mass}" for element, mass in mass_of.items())
    return f"S{table}:{''.join(molecule)}=", "".join(results)
