"""The ops as Triton kernels, which `triton_ops` launches; `reference` defines what each computes.

Tensors are contiguous. A program of the chains' updates has a tile of ROWS chains of one
observation and goes over their dimensions COLS at a time. Sums have a fixed order and there are no
atomics, so results are the same each time. Offsets into tensors are 64-bit. Numbers that are not
exact in float32 stand beside float64 tensors only in operators: functions such as ``tl.where``
would round them.
"""

from __future__ import annotations

import triton
import triton.language as tl

from cogen_fast.ops import philox

_PURPOSE_SHIFT = tl.constexpr(philox.PURPOSE_SHIFT)
_LATENT = tl.constexpr(int(philox.Purpose.LATENT))
_MOMENTUM = tl.constexpr(int(philox.Purpose.MOMENTUM))
_ACCEPT = tl.constexpr(int(philox.Purpose.ACCEPT))


# --- noise ----------------------------------------------------------------------------------------


@triton.jit
def _words(seed, purpose, block, transition, chain, observation):
    """Four words of each counter; the parts of a counter broadcast."""
    first = (block | (purpose << _PURPOSE_SHIFT)).to(tl.uint32)
    return tl.philox(
        seed, first, transition.to(tl.uint32), chain.to(tl.uint32), observation.to(tl.uint32)
    )


@triton.jit
def _uniform(word, dtype: tl.constexpr):
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
    """Logarithm of ``u`` in (0, 1); of float32 as philox.h has it, for ``tl.log`` is coarse."""
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
    """Cosine and sine of ``t`` turns, ``t`` in (0, 1); of float32 as philox.h has them."""
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
    """Normals ``(ROWS, 4 Q)`` of chains ``(ROWS, 1)`` and blocks ``(1, Q)`` of dimensions."""
    w0, w1, w2, w3 = _words(seed, purpose, block, transition, chain, observation)
    n0, n1 = _normal_pair(w0, w1, dtype)
    n2, n3 = _normal_pair(w2, w3, dtype)
    return tl.interleave(tl.interleave(n0, n2), tl.interleave(n1, n3))


# --- chains ---------------------------------------------------------------------------------------


@triton.jit
def _tile(chains, tiles, ROWS: tl.constexpr):
    """This program's observation, its chains ``(ROWS,)`` there, and which of these there are."""
    program = tl.program_id(0).to(tl.int64)
    chain = program % tiles * ROWS + tl.arange(0, ROWS)
    return program // tiles, chain, chain < chains


@triton.jit
def _columns(start, size, row, inside, COLS: tl.constexpr):
    """Dimensions from ``start`` on ``(COLS,)``, their offsets ``(ROWS, COLS)``, which there are."""
    column = start + tl.arange(0, COLS)
    real = inside[:, None] & (column < size)[None, :]
    return column, row[:, None] * size + column[None, :], real


@triton.jit
def _steps(step_size, observation, row, inside, PER_CHAIN: tl.constexpr):
    """Step sizes ``(ROWS,)`` of chains."""
    index = row if PER_CHAIN else tl.zeros_like(row) + observation
    return tl.load(step_size + index, mask=inside, other=0.0)


@triton.jit
def _inverse_masses(inverse_mass, observation, column, size):
    """Those of some dimensions, ``(1, COLS)``."""
    return tl.load(inverse_mass + observation * size + column, mask=column < size, other=1.0)[
        None, :
    ]


@triton.jit
def _kick(momentum, position, grad, span, beta, prior_weight):
    """Momentum after a kick over ``span`` ``(ROWS,)``: minus ``span grad U``."""
    misfit = (span * beta).to(momentum.dtype)[:, None]
    prior = (span * prior_weight).to(momentum.dtype)[:, None]
    return momentum - misfit * grad - prior * position


@triton.jit
def _kinetic(momentum, inverse_mass, observation, column, size):
    """Twice the kinetic energy of each entry, in float64."""
    v = momentum.to(tl.float64)
    kinetic = v * v
    if inverse_mass is not None:
        masses = _inverse_masses(inverse_mass, observation, column, size)
        kinetic = kinetic * masses.to(tl.float64)
    return kinetic


@triton.jit
def _drift(position, momentum, step, inverse_mass, observation, column, size):
    velocity = momentum
    if inverse_mass is not None:
        velocity = momentum * _inverse_masses(inverse_mass, observation, column, size)
    return position + step.to(position.dtype)[:, None] * velocity


@triton.jit
def _hamiltonian(energy, squares, kinetic, beta, prior_weight):
    """``beta E + prior_weight |z|^2 / 2 + v' M^-1 v / 2`` from the terms of both sums."""
    prior = 0.5 * tl.sum(squares, 1)
    return beta * energy + prior_weight * prior + 0.5 * tl.sum(kinetic, 1)


@triton.jit(do_not_specialize=["seed", "chains", "tiles"])
def initial_latents(
    out, transition, observation, seed, chains, size, tiles, ROWS: tl.constexpr, COLS: tl.constexpr
):
    """Prior draws ``(B, chains, size)``."""
    b, chain, inside = _tile(chains, tiles, ROWS)
    row = b * chains + chain
    at, who = tl.load(transition + b), tl.load(observation + b)
    for start in range(0, size, COLS):
        _, offset, real = _columns(start, size, row, inside, COLS)
        block = (start // 4 + tl.arange(0, COLS // 4))[None, :]
        drawn = _normals(seed, _LATENT, block, at, chain[:, None], who, out.dtype.element_ty)
        tl.store(out + offset, drawn, mask=real)


@triton.jit(do_not_specialize=["seed", "chains", "tiles"])
def begin_trajectory(
    position,
    momentum,
    hamiltonian,
    latents,
    energy,
    grad,
    beta,
    prior_weight,
    step_size,
    inverse_mass,
    transition,
    observation,
    seed,
    chains,
    size,
    tiles,
    PER_CHAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Momentum refresh, Hamiltonian, half a kick, one drift: the first three are written."""
    b, chain, inside = _tile(chains, tiles, ROWS)
    row = b * chains + chain
    at, who = tl.load(transition + b), tl.load(observation + b)
    heat, weight = tl.load(beta + b), tl.load(prior_weight + b)
    step = _steps(step_size, b, row, inside, PER_CHAIN)
    squares = tl.zeros([ROWS, COLS], tl.float64)
    kinetic = tl.zeros([ROWS, COLS], tl.float64)
    for start in range(0, size, COLS):
        column, offset, real = _columns(start, size, row, inside, COLS)
        block = (start // 4 + tl.arange(0, COLS // 4))[None, :]
        v = _normals(seed, _MOMENTUM, block, at, chain[:, None], who, momentum.dtype.element_ty)
        if inverse_mass is not None:
            root = _root(_inverse_masses(inverse_mass, b, column, size))
            v = _ratio(v, tl.broadcast_to(root, v.shape))
        v = tl.where(real, v, 0.0)
        z = tl.load(latents + offset, mask=real, other=0.0)
        g = tl.load(grad + offset, mask=real, other=0.0)
        squares += z.to(tl.float64) * z.to(tl.float64)
        kinetic += _kinetic(v, inverse_mass, b, column, size)
        v = _kick(v, z, g, 0.5 * step, heat, weight)
        tl.store(momentum + offset, v, mask=real)
        z = _drift(z, v, step, inverse_mass, b, column, size)
        tl.store(position + offset, z, mask=real)
    e = tl.load(energy + row, mask=inside, other=0.0)
    tl.store(hamiltonian + row, _hamiltonian(e, squares, kinetic, heat, weight), mask=inside)


@triton.jit(do_not_specialize=["chains", "tiles"])
def continue_trajectory(
    position,
    momentum,
    grad,
    beta,
    prior_weight,
    step_size,
    inverse_mass,
    chains,
    size,
    tiles,
    PER_CHAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """One kick and one drift of position and momentum, in place."""
    b, chain, inside = _tile(chains, tiles, ROWS)
    row = b * chains + chain
    heat, weight = tl.load(beta + b), tl.load(prior_weight + b)
    step = _steps(step_size, b, row, inside, PER_CHAIN)
    for start in range(0, size, COLS):
        column, offset, real = _columns(start, size, row, inside, COLS)
        z = tl.load(position + offset, mask=real, other=0.0)
        v = tl.load(momentum + offset, mask=real, other=0.0)
        g = tl.load(grad + offset, mask=real, other=0.0)
        v = _kick(v, z, g, step, heat, weight)
        tl.store(momentum + offset, v, mask=real)
        z = _drift(z, v, step, inverse_mass, b, column, size)
        tl.store(position + offset, z, mask=real)


@triton.jit(do_not_specialize=["seed", "chains", "tiles"])
def accept_select(
    out_latents,
    out_energy,
    out_grad,
    out_probability,
    out_accepted,
    out_change,
    latents,
    energy,
    grad,
    position,
    momentum,
    hamiltonian,
    proposed_energy,
    proposed_grad,
    beta,
    prior_weight,
    step_size,
    inverse_mass,
    active,
    transition,
    observation,
    seed,
    chains,
    size,
    tiles,
    PER_CHAIN: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
):
    """Last half kick, Metropolis test and selection, into the tensors named out."""
    b, chain, inside = _tile(chains, tiles, ROWS)
    row = b * chains + chain
    at, who = tl.load(transition + b), tl.load(observation + b)
    heat, weight = tl.load(beta + b), tl.load(prior_weight + b)
    step = _steps(step_size, b, row, inside, PER_CHAIN)
    squares = tl.zeros([ROWS, COLS], tl.float64)
    kinetic = tl.zeros([ROWS, COLS], tl.float64)
    for start in range(0, size, COLS):
        column, offset, real = _columns(start, size, row, inside, COLS)
        z = tl.load(position + offset, mask=real, other=0.0)
        v = tl.load(momentum + offset, mask=real, other=0.0)
        g = tl.load(proposed_grad + offset, mask=real, other=0.0)
        v = _kick(v, z, g, 0.5 * step, heat, weight)
        squares += z.to(tl.float64) * z.to(tl.float64)
        kinetic += _kinetic(v, inverse_mass, b, column, size)
    new_energy = tl.load(proposed_energy + row, mask=inside, other=0.0)
    old_energy = tl.load(energy + row, mask=inside, other=0.0)
    end = _hamiltonian(new_energy, squares, kinetic, heat, weight)
    change = end - tl.load(hamiltonian + row, mask=inside, other=0.0)
    # Whatever made it so, a change that is not finite (NaN fails the comparison) is a rejection.
    change = tl.where(tl.abs(change) < float("inf"), change, float("inf"))
    probability = tl.exp(-tl.maximum(change, 0.0))
    word, _, _, _ = _words(seed, _ACCEPT, tl.zeros_like(chain), at, chain, who)
    accepted = _uniform(word, tl.float64) < probability
    if active is not None:
        # A vector, for the interpreter cannot spread a comparison of one number over many.
        moves = tl.load(active + tl.zeros_like(row) + b) != 0
        accepted = accepted & moves
        probability = tl.where(moves, probability, 0.0)
        change = tl.where(moves, change, 0.0)
    tl.store(out_energy + row, tl.where(accepted, new_energy, old_energy), mask=inside)
    tl.store(out_probability + row, probability, mask=inside)
    tl.store(out_accepted + row, accepted, mask=inside)
    tl.store(out_change + row, change, mask=inside)
    keep, leave = accepted[:, None], (accepted == 0)[:, None]
    for start in range(0, size, COLS):
        column, offset, real = _columns(start, size, row, inside, COLS)
        new = tl.load(position + offset, mask=real & keep, other=0.0)
        old = tl.load(latents + offset, mask=real & leave, other=0.0)
        tl.store(out_latents + offset, tl.where(keep, new, old), mask=real)
        new = tl.load(proposed_grad + offset, mask=real & keep, other=0.0)
        old = tl.load(grad + offset, mask=real & leave, other=0.0)
        tl.store(out_grad + offset, tl.where(keep, new, old), mask=real)


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
    """New step size and running acceptance where it ``moves``, the old ones elsewhere."""
    new = tl.where(running > target, step * increase, step * decrease)
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
    at = tl.load(transition + b, mask=real, other=0)
    who = tl.load(observation + b, mask=real, other=0)
    zero = tl.zeros_like(b)
    word, _, _, _ = _words(seed, zero + purpose, zero, at, zero, who)
    tl.store(out + b, _uniform(word, tl.float64), mask=real)


# --- misfit ---------------------------------------------------------------------------------------


@triton.jit
def _observation_of(observation, row, observations):
    """That of an output, and whether there is such a one; 0 where there is none."""
    b = tl.load(observation + row)
    known = (b >= 0) & (b < observations)
    return tl.where(known, b, 0), known


@triton.jit
def _force(
    value,
    m,
    read,
    b,
    target,
    mask,
    weight,
    measured,
    mask_stride,
    weight_stride,
    ELEMENTWISE: tl.constexpr,
):
    """Energy, in float64, and its derivative of measured values, 0 where they are not ``read``.

    Unobserved entries are selected away, never multiplied by zero: NaN may stand there.
    """
    seen = read
    if mask is not None:
        seen = read & (tl.load(mask + b * mask_stride + m, mask=read, other=0) != 0)
    aim = tl.load(target + b * measured + m, mask=seen, other=0.0)
    residual = tl.where(seen, value - aim, 0.0)
    if ELEMENTWISE:
        factor = tl.load(weight + b * weight_stride + m, mask=read, other=0.0)
    else:
        factor = tl.load(weight + b * weight_stride)
    r = residual.to(tl.float64)
    return factor.to(tl.float64) * r * r, 2.0 * factor * residual


@triton.jit(do_not_specialize=["segments", "observations", "mask_stride", "weight_stride"])
def misfit_of_pixels(
    energy,
    grad,
    x,
    observation,
    target,
    mask,
    weight,
    segments,
    observations,
    measured,
    mask_stride,
    weight_stride,
    entries,
    height,
    width,
    factor,
    STRIDED: tl.constexpr,
    ELEMENTWISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A segment of an output that is read at every ``factor``-th pixel, or wholly."""
    program = tl.program_id(0).to(tl.int64)
    row, segment = program // segments, (program % segments).to(tl.int32)
    b, known = _observation_of(observation, row, observations)
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
    energies, force = _force(
        value, m, read, b, target, mask, weight, measured, mask_stride, weight_stride, ELEMENTWISE
    )
    tl.store(grad + row * entries + entry, tl.where(read, force, 0.0), mask=inside)
    tl.store(energy + program, tl.where(known, tl.sum(energies, 0), float("nan")))


@triton.jit(do_not_specialize=["segments", "observations", "mask_stride", "weight_stride"])
def misfit_of_means(
    energy,
    grad,
    x,
    observation,
    target,
    mask,
    weight,
    segments,
    observations,
    measured,
    mask_stride,
    weight_stride,
    entries,
    height,
    width,
    factor,
    ELEMENTWISE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A segment of the means of ``factor`` x ``factor`` blocks of an output."""
    program = tl.program_id(0).to(tl.int64)
    row, segment = program // segments, (program % segments).to(tl.int32)
    b, known = _observation_of(observation, row, observations)
    m = segment * BLOCK + tl.arange(0, BLOCK)
    read = m < measured
    columns = width // factor
    # The lines of blocks of all channels follow each other, for blocks tile the channels.
    corner = row * entries + (m // columns * factor * width + m % columns * factor)
    total = tl.zeros([BLOCK], x.dtype.element_ty)
    for i in range(factor):
        for j in range(factor):
            total += tl.load(x + corner + (i * width + j), mask=read, other=0.0)
    area = tl.zeros_like(total) + factor * factor
    energies, force = _force(
        _ratio(total, area),
        m,
        read,
        b,
        target,
        mask,
        weight,
        measured,
        mask_stride,
        weight_stride,
        ELEMENTWISE,
    )
    share = _ratio(force, area)
    for i in range(factor):
        for j in range(factor):
            tl.store(grad + corner + (i * width + j), share, mask=read)
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
