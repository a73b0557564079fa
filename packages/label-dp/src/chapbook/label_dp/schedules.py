"""Learning-rate schedules of a training stage."""

import optax

RAMP = 0.15  # of all steps; the official CIFAR-10 configuration
DECAYS = (0.3, 0.6, 0.9)  # of all steps; the rate falls tenfold at each


def official(learning_rate: float, steps: int) -> optax.Schedule:
    """Returns the schedule of the published code, in which the last decay never comes.

    A linear ramp over the first 15 % of the steps is joined to tenfold decays at 30, 60 and 90 %
    of the steps. Joining counts the second schedule's steps from the end of the ramp, so the
    decays come at 45, 75 and 105 % of the steps.

    Args:
        learning_rate: The rate at the end of the ramp.
        steps: The steps of the stage.

    Reference:
        google-research/label-dp, the CIFAR-10 configuration.
    """
    return optax.join_schedules(
        [_ramp(learning_rate, steps), _decayed(learning_rate, steps)], [_ramp_steps(steps)]
    )


def plain(learning_rate: float, steps: int) -> optax.Schedule:
    """Returns the schedule as one reads it: a ramp to 15 %, decays at 30, 60 and 90 % of all steps.

    Args:
        learning_rate: The rate at the end of the ramp.
        steps: The steps of the stage.
    """
    ramp = _ramp_steps(steps)
    return optax.join_schedules(
        [_ramp(learning_rate, steps), _decayed(learning_rate, steps, offset=ramp)], [ramp]
    )


def cosine(learning_rate: float, steps: int) -> optax.Schedule:
    """Returns a linear ramp over 15 % of the steps and half a cosine down to zero.

    Args:
        learning_rate: The rate at the end of the ramp.
        steps: The steps of the stage.
    """
    ramp = _ramp_steps(steps)
    return optax.warmup_cosine_decay_schedule(0.0, learning_rate, ramp, max(steps, ramp + 1))


def constant(learning_rate: float, steps: int) -> optax.Schedule:
    """Returns one rate for all steps.

    Args:
        learning_rate: The rate.
        steps: The steps of the stage; they do not matter.
    """
    return optax.constant_schedule(learning_rate)


def _ramp_steps(steps: int) -> int:
    return max(1, int(RAMP * steps))


def _ramp(learning_rate: float, steps: int) -> optax.Schedule:
    return optax.linear_schedule(0.0, learning_rate, _ramp_steps(steps))


def _decayed(learning_rate: float, steps: int, offset: int = 0) -> optax.Schedule:
    # Boundaries closer than a step would collide in the mapping; a stage that short has one decay.
    boundaries = {max(0, int(share * steps) - offset): 0.1 for share in DECAYS}
    return optax.piecewise_constant_schedule(learning_rate, boundaries)
