"""Simulated differences of two arms, whose truth is known."""

MILD = {"draw": 0.6, "run": 0.5, "subject": 1.2, "both": 0.8, "rest": 1.0}
DRAW_HEAVY = {"draw": 2.0, "run": 1.0, "subject": 1.0, "both": 1.0, "rest": 1.0}
SUBJECT_HEAVY = {"draw": 0.2, "run": 0.2, "subject": 2.0, "both": 1.0, "rest": 1.0}


def simulated(random, spreads, draws=10, subjects=40, effect=0.0, skewed=False):
    """Differences of one study: luck of the draw and of its run, of the subject, of both, and the rest."""

    def part(name, *shape):
        noise = random.exponential(size=shape) - 1 if skewed else random.standard_normal(shape)
        return spreads[name] * noise

    of_draw, of_subject = part("draw", draws, 1) + part("run", draws, 1), part("subject", 1, subjects)
    return effect + of_draw + of_subject + part("both", draws, subjects) + part("rest", draws, subjects)
