// The ops of MisfitOps against plain loops in double.
#include <cmath>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

enum class Rows { none, shared, own };

struct ImageShape {
  MisfitKind kind;
  int64_t channels, height, width, factor;
};

struct MisfitCase : ImageShape {
  int64_t rows, observations;
  Rows mask, weight;
  bool elementwise, ragged, extreme;

  int64_t size() const { return channels * height * width; }
  int64_t lines() const { return (height - 1) / factor + 1; }
  int64_t values() const { return (width - 1) / factor + 1; }
  int64_t measured() const { return channels * lines() * values(); }
};

std::string describe(const MisfitCase& c) {
  const char* const kinds[] = {"mask", "pool", "stride"};
  const char* const rows[] = {"none", "shared", "own"};
  std::string text = kinds[static_cast<int>(c.kind)];
  text += " n=" + std::to_string(c.rows) + " B=" + std::to_string(c.observations);
  text += " C=" + std::to_string(c.channels) + " H=" + std::to_string(c.height);
  text += " W=" + std::to_string(c.width) + " factor=" + std::to_string(c.factor);
  text += std::string(" mask=") + rows[static_cast<int>(c.mask)];
  text += std::string(" weight=") + rows[static_cast<int>(c.weight)];
  if (c.elementwise) text += " elementwise";
  if (c.ragged) text += " ragged";
  if (c.extreme) text += " extreme";
  return text;
}

// The entries of an output whose mean is measured value m.
std::vector<int64_t> entries_of(const MisfitCase& c, int64_t m) {
  const int64_t line = m / c.values();
  const int64_t top = line % c.lines() * c.factor, left = m % c.values() * c.factor;
  const int64_t first = (line / c.lines() * c.height + top) * c.width + left;
  if (c.kind != MisfitKind::pool) return {first};
  std::vector<int64_t> entries;
  for (int64_t i = 0; i < c.factor; ++i) {
    for (int64_t j = 0; j < c.factor; ++j) entries.push_back(first + i * c.width + j);
  }
  return entries;
}

int64_t rows_of(const MisfitCase& c, Rows rows) { return rows == Rows::own ? c.observations : 1; }

template <class T>
struct Inputs {
  MisfitCase c;
  std::vector<std::vector<int64_t>> entries;  // those of each measured value
  Array<T> outputs;
  Array<int64_t> observation;
  Array<T> target;
  Array<uint8_t> mask;
  Array<T> weight;
  std::vector<double> energy, grad;  // expected results

  explicit Inputs(const MisfitCase& misfit_case);

  // The problem, without its outputs.
  Misfit<T> problem() const;

 private:
  int64_t weights_per_row() const { return c.elementwise ? c.measured() : 1; }
  bool is_observed(int64_t b, int64_t m) const {
    return c.mask == Rows::none || mask[(c.mask == Rows::own ? b * c.measured() : 0) + m] != 0;
  }
  double weight_of(int64_t b, int64_t m) const {
    return weight[(c.weight == Rows::own ? b : 0) * weights_per_row() + (c.elementwise ? m : 0)];
  }
  void hide_what_is_not_read();
  void add_expected(int64_t row);
};

template <class T>
Inputs<T>::Inputs(const MisfitCase& misfit_case)
    : c(misfit_case),
      outputs(c.rows * c.size(), c.ragged),
      observation(c.rows, c.ragged),
      target(c.observations * c.measured(), c.ragged),
      mask(rows_of(c, c.mask) * c.measured(), c.ragged),
      weight(rows_of(c, c.weight) * weights_per_row(), c.ragged),
      energy(static_cast<size_t>(c.rows), 0.0),
      grad(static_cast<size_t>(c.rows * c.size()), 0.0) {
  Random random(static_cast<uint64_t>(c.rows * c.size()));
  for (int64_t m = 0; m < c.measured(); ++m) entries.push_back(entries_of(c, m));
  fill_values(outputs, random, c.extreme);
  fill_values(target, random, c.extreme);
  fill_uniform(weight, random, 0.5, 2.0);
  const uint8_t values[] = {0, 1, 255};
  for (int64_t m = 0; m < mask.size(); ++m) mask[m] = values[random.below(3)];
  // Observations are in descending order, so that the first row reads to the end of every array.
  for (int64_t row = 0; row < c.rows; ++row) {
    observation[row] = c.observations - 1 - row % c.observations;
  }
  hide_what_is_not_read();
  for (int64_t row = 0; row < c.rows; ++row) add_expected(row);
}

// Sets entries that are not observed to NaN, which must have no effect.
template <class T>
void Inputs<T>::hide_what_is_not_read() {
  std::vector<bool> is_read(static_cast<size_t>(outputs.size()), false);
  for (int64_t row = 0; row < c.rows; ++row) {
    for (int64_t m = 0; m < c.measured(); ++m) {
      if (!is_observed(observation[row], m)) continue;
      for (const int64_t at : entries[m]) is_read[row * c.size() + at] = true;
    }
  }
  for (int64_t i = 0; i < outputs.size(); ++i) {
    if (!is_read[i]) outputs[i] = static_cast<T>(kNan);
  }
  for (int64_t i = 0; i < target.size(); ++i) {
    if (!is_observed(i / c.measured(), i % c.measured())) target[i] = static_cast<T>(kNan);
  }
}

template <class T>
void Inputs<T>::add_expected(int64_t row) {
  const int64_t b = observation[row];
  Sum total;
  for (int64_t m = 0; m < c.measured(); ++m) {
    if (!is_observed(b, m)) continue;
    const double count = static_cast<double>(entries[m].size());
    double sum = 0.0;
    for (const int64_t at : entries[m]) sum += outputs[row * c.size() + at];
    const double residual = sum / count - target[b * c.measured() + m];
    total.add(weight_of(b, m) * residual * residual);
    for (const int64_t at : entries[m]) {
      grad[row * c.size() + at] = 2.0 * weight_of(b, m) * residual / count;
    }
  }
  energy[row] = total.total();
}

template <class T>
Misfit<T> Inputs<T>::problem() const {
  return {c.kind,
          c.rows,
          c.channels,
          c.height,
          c.width,
          c.factor,
          c.measured(),
          outputs.data(),
          observation.data(),
          target.data(),
          c.mask == Rows::none ? nullptr : mask.data(),
          c.mask == Rows::own ? c.measured() : 0,
          weight.data(),
          c.weight == Rows::own ? weights_per_row() : 0,
          c.elementwise,
          nullptr,
          nullptr,
          nullptr,
          1};
}

static_assert(sizeof(MisfitOps<float>) == 2 * sizeof(&check_misfit),
              "MisfitOps has changed: each op needs a check");

// Checks both ops; `segments` is the number of partial sums that `misfit` writes.
template <class T>
Outputs check_misfit_ops(const MisfitOps<T>& ops, const Inputs<T>& in, int threads) {
  const MisfitCase& c = in.c;
  Array<double> energy(c.rows, c.ragged);
  Array<T> grad(c.rows * c.size(), c.ragged);
  Misfit<T> m = in.problem();
  m.energy = energy.data();
  m.grad = grad.data();
  m.segments = ops.segments(m);
  Array<double> partials(m.segments > 1 ? c.rows * m.segments : 0, c.ragged);
  if (m.segments > 1) m.partials = partials.data();
  ops.misfit(m, threads);
  const Outputs outputs{output("energy", energy), output("grad", grad)};
  expect_close(outputs[0], in.energy, rounding_bound<T>());
  expect_close(outputs[1], in.grad, rounding_bound<T>());
  return outputs;
}

// Cases.

template <class T>
Outputs run_isa(const Isa<T>& isa, const Inputs<T>& in, const std::vector<int>& thread_counts) {
  const std::string name =
      std::string("misfit ") + type_name<T>() + " " + isa.name + " " + describe(in.c);
  return across_threads(name, thread_counts, [&](int threads) {
    return check_misfit_ops(*isa.ops.misfit, in, threads);
  });
}

template <class T>
void run_case(const MisfitCase& c, const std::vector<int>& thread_counts) {
  const Inputs<T> in(c);
  static const std::vector<Isa<T>> isas = usable_isas<T>();
  const Outputs plain = run_isa(isas[0], in, thread_counts);
  for (size_t k = 1; k < isas.size(); ++k) {
    expect_close(run_isa(isas[k], in, thread_counts), plain, rounding_bound<T>());
  }
}

std::vector<ImageShape> small_shapes() {
  std::vector<ImageShape> shapes;
  for (const int64_t entries : {1, 2, 7, 33, 297}) {
    shapes.push_back({MisfitKind::mask, 1, 1, entries, 1});
  }
  for (const int64_t k : {1, 2, 3, 4, 5, 8}) {
    shapes.push_back({MisfitKind::pool, 1, k, k, k});
    shapes.push_back({MisfitKind::pool, 3, k, 5 * k, k});
    shapes.push_back({MisfitKind::pool, 2, 3 * k, k, k});
  }
  for (const int64_t k : std::vector<int64_t>{1, 2, 3, 4, 7, 9, int64_t{1} << 31,
                                              int64_t{1} << 62, INT64_MAX}) {
    shapes.push_back({MisfitKind::stride, 1, 1, 1, k});
    shapes.push_back({MisfitKind::stride, 3, 5, 7, k});
    shapes.push_back({MisfitKind::stride, 2, 9, 4, k});
  }
  return shapes;
}

// All combinations of mask, weight, alignment and values.
void run_choices(const ImageShape& shape, int64_t rows, int64_t observations,
                 const std::vector<int>& thread_counts) {
  for (const Rows mask : {Rows::none, Rows::shared, Rows::own}) {
    for (const Rows weight : {Rows::shared, Rows::own}) {
      for (int flags = 0; flags < 8; ++flags) {
        const bool elementwise = flags & 1, ragged = flags & 2, extreme = flags & 4;
        const MisfitCase c{shape, rows, observations, mask, weight, elementwise, ragged, extreme};
        run_case<float>(c, thread_counts);
        run_case<double>(c, thread_counts);
      }
    }
  }
}

void check_small_images() {
  for (const ImageShape& shape : small_shapes()) {
    run_choices(shape, 1, 1, {3});
    run_choices(shape, 5, 3, {3});
  }
}

// More than 2^18 entries in several segments; the last has lines longer than a segment.
void check_large_images() {
  const ImageShape shapes[] = {{MisfitKind::mask, 1, 1, 87401, 1},
                               {MisfitKind::pool, 3, 171, 171, 3},
                               {MisfitKind::stride, 3, 173, 171, 4},
                               {MisfitKind::stride, 2, 5, 9001, 2}};
  for (const ImageShape& shape : shapes) {
    const MisfitCase c{shape, 3, 2, Rows::own, Rows::own, true, true, false};
    run_case<float>(c, {1, 3});
    run_case<double>(c, {1, 3});
  }
}

}  // namespace

void check_misfit() {
  check_small_images();
  check_large_images();
}

}  // namespace driver
}  // namespace cogen
