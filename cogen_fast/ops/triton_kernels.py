"""The ops as Triton kernels, which `triton_ops` launches; `reference` defines what each computes.

Tensors are contiguous. A program that updates chains has a tile of ROWS chains of one observation
and goes over their dimensions, COLS at a time. Sums have a fixed order and there are no atomics, so
results are the same each time. Offsets into tensors are 64-bit. Constants that float32 cannot hold
exactly appear beside float64 tensors only in sums and products: functions such as ``tl.where``
round them, and so do comparisons in some versions of Triton.

A kernel's parameters come in this order, a comment before each group: what it writes, the current
state of the chains, the proposal, the potential and the step (as in `TransitionSettings`), the
noise stream (as in `NoiseStream`), sizes, and constants of the compilation.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cogen_fast.ops import philox
from cogen_fast.ops.triton_misfit import observed_values, weighted_square

_PURPOSE_SHIFT = tl.constexpr(philox.PURPOSE_SHIFT)
_LATENT = tl.constexpr(int(philox.Purpose.LATENT))
_MOMENTUM = tl.constexpr(int(philox.Purpose.MOMENTUM))
_ACCEPT = tl.constexpr(int(philox.Purpose.ACCEPT))


# --- noise ----------------------------------------------------------------------------------------


@triton.jit
def _words(seed, purpose, block, transition, chain, observation):
    """The four Philox words of each counter; the parts of a counter are broadcast."""
    first = (block | (purpose << _PURPOSE_SHIFT)).to(tl.uint32)
    return tl.philox(
        seed, first, transition.to(tl.uint32), chain.to(tl.uint32), observation.to(tl.uint32)
    )


@triton.jit
def _uniform(word, dtype: tl.constexpr):
    """A uniform in (0, 1) from the upper 23 bits of a word."""
    return ((word >> 9).to(tl.int32).to(dtype) + 0.5) * (1.0 / 8388608.0)


@triton.jit
def _root(value):
    """Square root, correctly rounded; ``tl.sqrt`` of float32 is approximate on a GPU."""
    return tl.sqrt(value) if value.dtype == tl.float64 else tl.sqrt_rn(value)


@triton.jit
def _ratio(a, b):
    """``a / b``, correctly rounded; the operator is approximate for float32 on a GPU."""
    return a / b if a.dtype == tl.float64 else tl.div_rn(a, b)


@triton.jit
def _log_of_uniform(u):
    """Logarithm of ``u`` in (0, 1); for float32 as in philox.h, as ``tl.log`` is too coarse."""
    if u.dtype == tl.float64:
        log = tl.log(u)
    else:
        bits = u.to(tl.int32, bitcast=True)
        e = (bits - 0x3F3504F3) >> 23
        f = (bits - e * 8388608).to(tl.float32, bitcast=True) - 1.0
        p = 6.746643496e-02 * f - 1.167565631e-01
        p = p * f + 1.188816338e-01
        p = p * f - 1.240558831e-01
        p = p * f + 1.421955215e-01
        p = p * f - 1.666799588e-01
        p = p * f + 2.000211867e-01
        p = p * f - 2.500000960e-01
        p = p * f + 3.333331260e-01
        square = f * f
        exponent = e.to(tl.float32)
        # ln 2 in two parts: the first has few enough bits for an exact product with e.
        tail = exponent * -2.12194440e-4 + (square * f * p - 0.5 * square)
        log = exponent * 0.693359375 + (tail + f)
    return log


@triton.jit
def _cos_sin_turns(t):
    """Cosine and sine of ``t`` turns, ``t`` in (0, 1); for float32 as in philox.h."""
    if t.dtype == tl.float64:
        angle = 6.283185307179586 * t
        cosine, sine = tl.cos(angle), tl.sin(angle)
    else:
        quadrant = (4.0 * t + 0.5).to(tl.int32)
        r = t - 0.25 * quadrant.to(tl.float32)
        s = r * r
        p = -7.524006298e01 * s + 8.158812461e01
        q = 5.924596344e01 * s - 8.544374171e01
        p = p * s - 4.134162804e01
        q = q * s + 6.493932647e01
        p = p * s + 6.283185220e00
        q = q * s - 1.973920869e01
        sin_r, cos_r = p * r, q * s + 1.0
        swapped = (quadrant & 1) == 1
        cosine, sine = tl.where(swapped, sin_r, cos_r), tl.where(swapped, cos_r, sin_r)
        cosine = tl.where(((quadrant + 1) & 2) == 2, -cosine, cosine)
        sine = tl.where((quadrant & 2) == 2, -sine, sine)
    return cosine, sine


@triton.jit
def _normal_pair(radius_word, turn_word, dtype: tl.constexpr):
    """Two standard normals by Box-Muller."""
    radius = _root(-2.0 * _log_of_uniform(_uniform(radius_word, dtype)))
    cosine, sine = _cos_sin_turns(_uniform(turn_word, dtype))
    return radius * cosine, radius * sine


@triton.jit
def _normals(seed, purpose, block, transition, chain, observation, dtype: tl.constexpr):
    """Normals ``(ROWS, 4 Q)`` for chains ``(ROWS, 1)`` and blocks ``(1, Q)`` of 4 dimensions."""
    w0, w1, w2, w3 = _words(seed, purpose, block, transition, chain, observation)
    n0, n1 = _normal_pair(w0, w1, dtype)
    n2, n3 = _normal_pair(w2, w3, dtype)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


# --- chains ---------------------------------------------------------------------------------------


@triton.jit
def _tile(chains, ROWS: tl.constexpr):
    """This program's observation; its chains, their rows in ``(B N)``, and which of them exist."""
    program = tl.program_id(0).to(tl.int64)
    tiles = (chains - 1) // ROWS + 1
    observation, chain = program // tiles, program % tiles * ROWS + tl.arange(0, ROWS)
    return observation, chain, observation * chains + chain, chain < chains


@triton.jit
def _columns(start, size, row, inside, COLS: tl.constexpr):
    """Dimensions from ``start`` on ``(COLS,)``; their offsets ``(ROWS, COLS)``, and which exist."""
    column = start + tl.arange(0, COLS)
    real = inside[:, None] & (column < size)[None, :]
    return column, row[:, None] * size + column[None, :], real


@triton.jit
def _blocks(start, COLS: tl.constexpr):
    """The numbers ``(1, COLS / 4)`` of the blocks of four dimensions that noise is drawn in."""
    return (start // 4 + tl.arange(0, COLS // 4))[None, :]


@triton.jit
def _step_sizes(step_size, observation, row, inside, PER_CHAIN: tl.constexpr):
    """The step size ``(ROWS,)`` of each chain: its own, or that of its observation."""
    index = row if PER_CHAIN else tl.zeros_like(row) + observation
    return tl.load(step_size + index, mask=inside, other=0.0)


@triton.jit
def _inverse_masses(inverse_mass, column, size):
    """The diagonal ``(1, COLS)`` of the inverse mass of an observation, from its first entry."""
    return tl.load(inverse_mass + column, mask=column < size, other=1.0)[None, :]


@triton.jit
def _kick_spans(beta, prior_weight, span, dtype: tl.constexpr):
    """What a kick over ``span`` ``(ROWS,)`` multiplies the two forces by, ``(ROWS, 1)`` each."""
    return (span * beta).to(dtype)[:, None], (span * prior_weight).to(dtype)[:, None]


@triton.jit
def _kick(momentum, position, grad, misfit_span, prior_span):
    """The momentum after a kick: minus the gradient of the potential, times the span."""
    return momentum - misfit_span * grad - prior_span * position


@triton.jit
def _drift(position, momentum, step, inverse_mass, column, size):
    """The position after a drift over ``step`` ``(ROWS, 1)``."""
    velocity = momentum
    if inverse_mass is not None:
        velocity = momentum * _inverse_masses(inverse_mass, column, size)
    return position + step * velocity


@triton.jit
def _drawn_momentum(
    # the noise
    seed,
    block,
    transition,
    chain,
    observation,
    # the mass
    inverse_mass,
    column,
    size,
    dtype: tl.constexpr,
):
    """Momenta ``v ~ N(0, M)`` ``(ROWS, COLS)`` of chains ``(ROWS, 1)``."""
    v = _normals(seed, _MOMENTUM, block, transition, chain, observation, dtype)
    if inverse_mass is not None:
        root = _root(_inverse_masses(inverse_mass, column, size))
        v = _ratio(v, tl.broadcast_to(root, v.shape))
    return v


@triton.jit
def _squares(values):
    """The squares, in float64."""
    return values.to(tl.float64) * values.to(tl.float64)


@triton.jit
def _twice_kinetic(momentum, inverse_mass, column, size):
    """Twice the kinetic energy of each entry, in float64."""
    kinetic = _squares(momentum)
    if inverse_mass is not None:
        kinetic = kinetic * _inverse_masses(inverse_mass, column, size).to(tl.float64)
    return kinetic


@triton.jit
def _hamiltonian(energy, squares, kinetic, beta, prior_weight):
    """``beta E + prior_weight |z|^2 / 2 + v' M^-1 v / 2`` from the terms of both sums."""
    prior = 0.5 * tl.sum(squares, 1)
    return beta * energy + prior_weight * prior + 0.5 * tl.sum(kinetic, 1)


@triton.jit
def _squares_at_the_end(
    # the end of the trajectory, its momentum before the last half kick
    position,
    momentum,
    grad,
    # that kick, and the mass
    misfit_span,
    prior_span,
    inverse_mass,
    # the tile
    row,
    inside,
    size,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """The terms of ``|z|^2`` and ``v' M^-1 v`` after the last half kick, ``(ROWS, COLS)`` each.

    No later step needs the momentum after that kick, so it is not stored.
    """
    squares = tl.zeros([ROWS, COLS], tl.float64)
    kinetic = tl.zeros([ROWS, COLS], tl.float64)
    for start in range(0, size, COLS):
        column, offset, real = _columns(start, size, row, inside, COLS)
        z = tl.load(position + offset, mask=real, other=0.0)
        v = tl.load(momentum + offset, mask=real, other=0.0)
        g = tl.load(grad + offset, mask=real, other=0.0)
        v = _kick(v, z, g, misfit_span, prior_span)
        squares += _squares(z)
        kinetic += _twice_kinetic(v, inverse_mass, column, size)
    return squares, kinetic


@triton.jit
def _acceptance_uniform(seed, transition, chain, observation):
    """The uniform ``(ROWS,)`` that decides whether each chain accepts."""
    word, _, _, _ = _words(seed, _ACCEPT, tl.zeros_like(chain), transition, chain, observation)
    return _uniform(word, tl.float64)


@triton.jit
def _metropolis(start, end, uniform):
    """Whether chains accept, with which probability, and by how much their Hamiltonian changed."""
    change = end - start
    # Whatever made it so, a change that is not finite (NaN fails the comparison) is a rejection.
    change = tl.where(tl.abs(change) < float("inf"), change, float("inf"))
    probability = tl.exp(-tl.maximum(change, 0.0))
    return uniform < probability, probability, change


@triton.jit
def _select(out, proposed, current, accepted, offset, real):
    """Store ``proposed`` entries of the chains that accepted, ``current`` ones of the others."""
    taken, left = accepted[:, None], (accepted == 0)[:, None]
    new = tl.load(proposed + offset, mask=real & taken, other=0.0)
    old = tl.load(current + offset, mask=real & left, other=0.0)
    tl.store(out + offset, tl.where(taken, new, old), mask=real)


@triton.jit(do_not_specialize=["seed", "chains"])
def initial_latents(
    out,
    # the noise stream
    transition,
    observation,
    seed,
    # sizes and constants
    chains,
    size,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Prior draws ``(B, chains, size)``."""
    b, chain, row, inside = _tile(chains, ROWS)
    at_transition, of_observation = tl.load(transition + b), tl.load(observation + b)
    for start in range(0, size, COLS):
        _, offset, real = _columns(start, size, row, inside, COLS)
        block = _blocks(start, COLS)
        drawn = _normals(
            seed,
            _LATENT,
            block,
            at_transition,
            chain[:, None],
            of_observation,
            out.dtype.element_ty,
        )
        tl.store(out + offset, drawn, mask=real)


@triton.jit(do_not_specialize=["seed", "chains"])
def begin_trajectory(
    # the proposal, which is written
    position,
    momentum,
    hamiltonian,
    # the current state
    latents,
    energy,
    grad,
    # the potential and the step
    beta,
    prior_weight,
    step_size,
    inverse_mass,
    # the noise stream
    transition,
    observation,
    seed,
    # sizes and constants
    chains,
    size,
    PER_CHAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Momentum refresh, Hamiltonian, half a kick and one drift."""
    b, chain, row, inside = _tile(chains, ROWS)
    at_transition, of_observation = tl.load(transition + b), tl.load(observation + b)
    inverse_temperature, weight = tl.load(beta + b), tl.load(prior_weight + b)
    step = _step_sizes(step_size, b, row, inside, PER_CHAIN)
    if inverse_mass is not None:
        inverse_mass += b * size
    misfit_span, prior_span = _kick_spans(
        inverse_temperature, weight, 0.5 * step, momentum.dtype.element_ty
    )
    step = step.to(position.dtype.element_ty)[:, None]
    squares = tl.zeros([ROWS, COLS], tl.float64)
    kinetic = tl.zeros([ROWS, COLS], tl.float64)
    for start in range(0, size, COLS):
        column, offset, real = _columns(start, size, row, inside, COLS)
        v = _drawn_momentum(
            seed,
            _blocks(start, COLS),
            at_transition,
            chain[:, None],
            of_observation,
            inverse_mass,
            column,
            size,
            momentum.dtype.element_ty,
        )
        v = tl.where(real, v, 0.0)
        z = tl.load(latents + offset, mask=real, other=0.0)
        g = tl.load(grad + offset, mask=real, other=0.0)
        squares += _squares(z)
        kinetic += _twice_kinetic(v, inverse_mass, column, size)
        v = _kick(v, z, g, misfit_span, prior_span)
        tl.store(momentum + offset, v, mask=real)
        z = _drift(z, v, step, inverse_mass, column, size)
        tl.store(position + offset, z, mask=real)
    e = tl.load(energy + row, mask=inside, other=0.0)
    tl.store(
        hamiltonian + row,
        _hamiltonian(e, squares, kinetic, inverse_temperature, weight),
        mask=inside,
    )


@triton.jit(do_not_specialize=["chains"])
def continue_trajectory(
    # the proposal, which is changed in place
    position,
    momentum,
    grad,
    # the potential and the step
    beta,
    prior_weight,
    step_size,
    inverse_mass,
    # sizes and constants
    chains,
    size,
    PER_CHAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One kick and one drift of position and momentum, in place."""
    b, _, row, inside = _tile(chains, ROWS)
    inverse_temperature, weight = tl.load(beta + b), tl.load(prior_weight + b)
    step = _step_sizes(step_size, b, row, inside, PER_CHAIN)
    if inverse_mass is not None:
        inverse_mass += b * size
    misfit_span, prior_span = _kick_spans(
        inverse_temperature, weight, step, momentum.dtype.element_ty
    )
    step = step.to(position.dtype.element_ty)[:, None]
    for start in range(0, size, COLS):
        column, offset, real = _columns(start, size, row, inside, COLS)
        z = tl.load(position + offset, mask=real, other=0.0)
        v = tl.load(momentum + offset, mask=real, other=0.0)
        g = tl.load(grad + offset, mask=real, other=0.0)
        v = _kick(v, z, g, misfit_span, prior_span)
        tl.store(momentum + offset, v, mask=real)
        z = _drift(z, v, step, inverse_mass, column, size)
        tl.store(position + offset, z, mask=real)


@triton.jit(do_not_specialize=["seed", "chains"])
def accept_select(
    # the next state and what happened, which are written
    out_latents,
    out_energy,
    out_grad,
    out_probability,
    out_accepted,
    out_change,
    # the current state
    latents,
    energy,
    grad,
    # the proposal, with its energy and gradient
    position,
    momentum,
    hamiltonian,
    proposed_energy,
    proposed_grad,
    # the potential and the step, and which observations move
    beta,
    prior_weight,
    step_size,
    inverse_mass,
    active,
    # the noise stream
    transition,
    observation,
    seed,
    # sizes and constants
    chains,
    size,
    PER_CHAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Last half kick, Metropolis test and selection."""
    b, chain, row, inside = _tile(chains, ROWS)
    at_transition, of_observation = tl.load(transition + b), tl.load(observation + b)
    inverse_temperature, weight = tl.load(beta + b), tl.load(prior_weight + b)
    step = _step_sizes(step_size, b, row, inside, PER_CHAIN)
    if inverse_mass is not None:
        inverse_mass += b * size
    misfit_span, prior_span = _kick_spans(
        inverse_temperature, weight, 0.5 * step, momentum.dtype.element_ty
    )
    squares, kinetic = _squares_at_the_end(
        position,
        momentum,
        proposed_grad,
        misfit_span,
        prior_span,
        inverse_mass,
        row,
        inside,
        size,
        ROWS,
        COLS,
    )
    new_energy = tl.load(proposed_energy + row, mask=inside, other=0.0)
    old_energy = tl.load(energy + row, mask=inside, other=0.0)
    end = _hamiltonian(new_energy, squares, kinetic, inverse_temperature, weight)
    begin = tl.load(hamiltonian + row, mask=inside, other=0.0)
    uniform = _acceptance_uniform(seed, at_transition, chain, of_observation)
    accepted, probability, change = _metropolis(begin, end, uniform)
    if active is not None:
        # Loaded once per chain, because the interpreter cannot broadcast a scalar comparison.
        moves = tl.load(active + tl.zeros_like(row) + b) != 0
        accepted = accepted & moves
        probability = tl.where(moves, probability, 0.0)
        change = tl.where(moves, change, 0.0)
    tl.store(out_energy + row, tl.where(accepted, new_energy, old_energy), mask=inside)
    tl.store(out_probability + row, probability, mask=inside)
    tl.store(out_accepted + row, accepted, mask=inside)
    tl.store(out_change + row, change, mask=inside)
    for start in range(0, size, COLS):
        _, offset, real = _columns(start, size, row, inside, COLS)
        _select(out_latents, position, latents, accepted, offset, real)
        _select(out_grad, proposed_grad, grad, accepted, offset, real)


# --- observations ---------------------------------------------------------------------------------


@triton.jit
def _adapted(
    step,
    running,
    seen,
    moves,
    target: tl.constexpr,
    decay: tl.constexpr,
    increase: tl.constexpr,
    decrease: tl.constexpr,
    minimum: tl.constexpr,
    maximum: tl.constexpr,
):
    """The next step size and running acceptance rate; the old ones where nothing ``moves``."""
    # Not rounded to float32 (as the constant of a comparison is in Triton 3.7): runs begin at it.
    above = running > tl.full([], target, tl.float64)
    new = tl.where(above, step * increase, step * decrease)
    new = tl.maximum(new, tl.full([], minimum, tl.float64))
    new = tl.minimum(new, tl.full([], maximum, tl.float64))
    now = decay * running + (1.0 - decay) * seen
    return tl.where(moves, new, step), tl.where(moves, now, running)


@triton.jit(do_not_specialize=["chains"])
def adapt_step_size(
    new_step_size,
    new_running,
    step_size,
    running,
    probability,
    active,
    chains,
    target: tl.constexpr,
    decay: tl.constexpr,
    increase: tl.constexpr,
    decrease: tl.constexpr,
    minimum: tl.constexpr,
    maximum: tl.constexpr,
    PER_CHAIN: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The published rule for one observation, or for each of its chains."""
    b = tl.program_id(0).to(tl.int64)
    first = b * chains
    moves = True
    if active is not None:
        moves = tl.load(active + b) != 0
    if PER_CHAIN:
        for start in range(0, chains, BLOCK):
            chain = start + tl.arange(0, BLOCK)
            real = chain < chains
            step = tl.load(step_size + first + chain, mask=real, other=0.0)
            rate = tl.load(running + first + chain, mask=real, other=0.0)
            seen = tl.load(probability + first + chain, mask=real, other=0.0)
            step, rate = _adapted(
                step, rate, seen, moves, target, decay, increase, decrease, minimum, maximum
            )
            tl.store(new_step_size + first + chain, step, mask=real)
            tl.store(new_running + first + chain, rate, mask=real)
    else:
        total = tl.zeros([BLOCK], tl.float64)
        for start in range(0, chains, BLOCK):
            chain = start + tl.arange(0, BLOCK)
            total += tl.load(probability + first + chain, mask=chain < chains, other=0.0)
        mean = tl.sum(total, 0) / chains
        step, rate = tl.load(step_size + b), tl.load(running + b)
        step, rate = _adapted(
            step, rate, mean, moves, target, decay, increase, decrease, minimum, maximum
        )
        tl.store(new_step_size + b, step)
        tl.store(new_running + b, rate)


@triton.jit(do_not_specialize=["chains"])
def cumulate_weights(upto, log_weights, chains, BLOCK: tl.constexpr):
    """Cumulated weights of one observation, which sum to one."""
    first = tl.program_id(0).to(tl.int64) * chains
    log_weights += first
    upto += first
    lane = tl.arange(0, BLOCK)
    top = tl.full([BLOCK], -float("inf"), tl.float64)
    for start in range(0, chains, BLOCK):
        n = start + lane
        top = tl.maximum(top, tl.load(log_weights + n, mask=n < chains, other=-float("inf")))
    most = tl.max(top, 0)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, chains, BLOCK):
        n = start + lane
        total += tl.exp(tl.load(log_weights + n, mask=n < chains, other=-float("inf")) - most)
    norm = tl.sum(total, 0)
    before = 0.0 * norm
    for start in range(0, chains, BLOCK):
        n = start + lane
        log_weight = tl.load(log_weights + n, mask=n < chains, other=-float("inf"))
        so_far = before + tl.cumsum(tl.exp(log_weight - most) / norm, 0)
        tl.store(upto + n, so_far, mask=n < chains)
        before = tl.sum(tl.where(lane == BLOCK - 1, so_far, 0.0), 0)


@triton.jit(do_not_specialize=["chains", "tiles", "halvings"])
def systematic_ancestors(out, upto, uniform, wanted, chains, tiles, halvings, BLOCK: tl.constexpr):
    """The first particle whose cumulated weight is above each point, by bisection."""
    program = tl.program_id(0).to(tl.int64)
    b = program // tiles
    index = program % tiles * BLOCK + tl.arange(0, BLOCK)
    real = index < chains
    upto += b * chains
    point = (index + tl.load(uniform + b)) / chains * tl.load(upto + chains - 1)
    low = tl.zeros_like(index)
    high = low + (chains - 1)
    for _ in range(halvings):
        middle = (low + high) // 2
        beyond = (low < high) & (tl.load(upto + middle) <= point)
        low, high = tl.where(beyond, middle + 1, low), tl.where(beyond, high, middle)
    if wanted is not None:
        low = tl.where(tl.load(wanted + b) != 0, low, index)
    tl.store(out + b * chains + index, low, mask=real)


@triton.jit(do_not_specialize=["seed", "purpose", "observations"])
def observation_uniforms(
    out, transition, observation, seed, purpose, observations, BLOCK: tl.constexpr
):
    """One uniform in (0, 1) per observation."""
    b = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    real = b < observations
    at_transition = tl.load(transition + b, mask=real, other=0)
    of_observation = tl.load(observation + b, mask=real, other=0)
    zero = tl.zeros_like(b)
    word, _, _, _ = _words(seed, zero + purpose, zero, at_transition, zero, of_observation)
    tl.store(out + b, _uniform(word, tl.float64), mask=real)


# --- misfit ---------------------------------------------------------------------------------------


@triton.jit
def _observation_of(observation, row, observations):
    """The observation that an output belongs to, 0 where there is none, and whether there is."""
    b = tl.load(observation + row)
    known = (b >= 0) & (b < observations)
    return tl.where(known, b, 0), known


@triton.jit
def _weights(weight, m, read, ELEMENTWISE: tl.constexpr):
    """The weight of each measured value ``m``, or the one that they share."""
    return tl.load(weight + m, mask=read, other=0.0) if ELEMENTWISE else tl.load(weight)


@triton.jit(do_not_specialize=["segments", "observations", "mask_stride", "weight_stride"])
def misfit_of_pixels(
    # the energy of each segment and the gradient, which are written
    energy,
    grad,
    # the outputs, and which observation each belongs to
    x,
    observation,
    # what is observed, and how far its rows are apart
    target,
    mask,
    weight,
    segments,
    observations,
    measured,
    mask_stride,
    weight_stride,
    # an output's size, and what of it is read
    entries,
    height,
    width,
    factor,
    # constants
    STRIDED: tl.constexpr,
    ELEMENTWISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A segment of an output that is read at every ``factor``-th pixel, or wholly."""
    program = tl.program_id(0).to(tl.int64)
    row, segment = program // segments, (program % segments).to(tl.int32)
    b, known = _observation_of(observation, row, observations)
    target += b * measured
    weight += b * weight_stride
    if mask is not None:
        mask += b * mask_stride
    entry = segment * BLOCK + tl.arange(0, BLOCK)
    inside = entry < entries
    read, m = inside, entry
    if STRIDED:
        line, column = entry // width, entry % width
        channel, line = line // height, line % height
        read = inside & (line % factor == 0) & (column % factor == 0)
        lines, columns = (height - 1) // factor + 1, (width - 1) // factor + 1
        m = (channel * lines + line // factor) * columns + column // factor
    value = tl.load(x + row * entries + entry, mask=read, other=0.0)
    aim, seen = observed_values(m, read, target, mask)
    energies, by_value = weighted_square(value, aim, seen, _weights(weight, m, read, ELEMENTWISE))
    tl.store(grad + row * entries + entry, tl.where(read, by_value, 0.0), mask=inside)
    tl.store(energy + program, tl.where(known, tl.sum(energies, 0), float("nan")))


@triton.jit(do_not_specialize=["segments", "observations", "mask_stride", "weight_stride"])
def misfit_of_means(
    # the energy of each segment and the gradient, which are written
    energy,
    grad,
    # the outputs, and which observation each belongs to
    x,
    observation,
    # what is observed, and how far its rows are apart
    target,
    mask,
    weight,
    segments,
    observations,
    measured,
    mask_stride,
    weight_stride,
    # an output's size, and what of it is read
    entries,
    height,
    width,
    factor,
    # constants
    ELEMENTWISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A segment of the means of ``factor`` x ``factor`` blocks of an output."""
    program = tl.program_id(0).to(tl.int64)
    row, segment = program // segments, (program % segments).to(tl.int32)
    b, known = _observation_of(observation, row, observations)
    target += b * measured
    weight += b * weight_stride
    if mask is not None:
        mask += b * mask_stride
    m = segment * BLOCK + tl.arange(0, BLOCK)
    read = m < measured
    columns = width // factor
    # Blocks tile the channels, so rows of blocks can be numbered through all channels.
    corner = row * entries + (m // columns * factor * width + m % columns * factor)
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    for i in range(factor):
        for j in range(factor):
            total += tl.load(x + corner + (i * width + j), mask=read, other=0.0)
    area = tl.zeros_like(total) + factor * factor
    mean = _ratio(total, area)
    aim, seen = observed_values(m, read, target, mask)
    energies, by_mean = weighted_square(mean, aim, seen, _weights(weight, m, read, ELEMENTWISE))
    by_pixel = _ratio(by_mean, area)
    for i in range(factor):
        for j in range(factor):
            tl.store(grad + corner + (i * width + j), by_pixel, mask=read)
    tl.store(energy + program, tl.where(known, tl.sum(energies, 0), float("nan")))


@triton.jit(do_not_specialize=["segments"])
def sum_segments(energy, partials, segments, BLOCK: tl.constexpr):
    """Energy of one output from those of its segments."""
    row = tl.program_id(0).to(tl.int64)
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, segments, BLOCK):
        segment = start + tl.arange(0, BLOCK)
        total += tl.load(partials + row * segments + segment, mask=segment < segments, other=0.0)
    tl.store(energy + row, tl.sum(total, 0))
