// Runs every kernel on buffers of exactly the size it asks for, filled with NaN, under the address
// and undefined-behaviour sanitizers: a read or write past a buffer stops the program, a read of
// what was never written shows as NaN in a result. tests/runtime/test_sanitized_kernels.py builds
// and runs it.
#include <cmath>
#include <cstdio>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "cpu/common/instruction_sets.h"
#include "cpu/operations.h"

using namespace spectral;

namespace {

int failures = 0;

// The tables of the instruction set that this program is compiled for.
const auto& values = compiled_for<ValuesKernels, InstructionSet::SK_ISA>();
const auto& vectors = compiled_for<VectorsKernels, InstructionSet::SK_ISA>();
const auto& tracking = compiled_for<TrackingKernels, InstructionSet::SK_ISA>();
const auto& factored = compiled_for<FactoredKernels, InstructionSet::SK_ISA>();
const auto& measures = compiled_for<MeasuresKernels, InstructionSet::SK_ISA>();

template <class T>
using Buffer = std::unique_ptr<T[]>;

template <class T>
Buffer<T> poisoned(int64_t count) {
  auto buffer = Buffer<T>(new T[static_cast<size_t>(count)]);
  std::memset(static_cast<void*>(buffer.get()), 0xff, static_cast<size_t>(count) * sizeof(T));
  return buffer;
}

template <class T>
void expect_written(const Buffer<T>& x, int64_t count, const char* what, const MatrixView& a) {
  for (int64_t i = 0; i < count; ++i)
    if (std::isnan(x[static_cast<size_t>(i)])) {
      std::printf("%s of %ld x %ld: NaN at %ld\n", what, static_cast<long>(a.m),
                  static_cast<long>(a.n), static_cast<long>(i));
      ++failures;
      return;
    }
}

template <class T>
struct SvdBuffers {
  int64_t m, n, k;
  Buffer<T> ut, s, vh;
  explicit SvdBuffers(const MatrixView& a, int64_t rank)
      : m(a.m),
        n(a.n),
        k(rank),
        ut(poisoned<T>(k * m)),
        s(poisoned<T>(k)),
        vh(poisoned<T>(k * n)) {}
  SvdOutput output() { return {ut.get(), s.get(), vh.get()}; }
  void check(const char* what, const MatrixView& a) {
    expect_written(ut, k * m, what, a);
    expect_written(s, k, what, a);
    expect_written(vh, k * n, what, a);
  }
};

void check_gram_values(const MatrixView& a) {
  const int64_t r = a.short_side();
  auto s = poisoned<float>(r), again = poisoned<float>(r);
  for (const bool in_parts : {false, true}) {
    auto g = poisoned<double>(values.gram_size(a));
    const int64_t step = in_parts ? 2 * kGramPart : r;
    for (int64_t first = 0; first < r; first += step) {
      auto work = poisoned<double>(values.gram_workspace(a));
      values.gram_part(a, first, first + step < r ? first + step : r, g.get(), work.get());
    }
    auto work = poisoned<double>(values.gram_workspace(a));
    values.gram_values(a, g.get(), in_parts ? again.get() : s.get(), work.get());
  }
  expect_written(s, r, "gram_values", a);
  if (std::memcmp(s.get(), again.get(), static_cast<size_t>(r) * sizeof(float)) != 0) {
    std::printf("gram_values of %ld x %ld: parts differ\n", static_cast<long>(a.m),
                static_cast<long>(a.n));
    ++failures;
  }
}

void check_reductions(const MatrixView& a) {
  const int64_t r = a.short_side();
  auto q = poisoned<double>(r), e = poisoned<double>(r);
  Reduced reduced[8];
  auto solve = [&](const char* what) {
    auto work = poisoned<double>(values.qd_workspace(r, 1));
    values.qd(&reduced[0].problem, 1, work.get());
    if (!reduced[0].problem.converged) {
      std::printf("%s of %ld x %ld: not converged\n", what, static_cast<long>(a.m),
                  static_cast<long>(a.n));
      ++failures;
    }
    expect_written(q, r, what, a);
  };
  if (a.is_double()) {
    reduced[0] = {{r, q.get(), e.get(), 0.0, false}, 1.0};
    auto work = poisoned<double>(values.reduce_workspace(a));
    values.reduce(a, reduced, work.get());
    solve("reduce");
  }
  if (a.short_side() > 32 || a.long_side() > 64) return;
  reduced[0] = {{r, q.get(), e.get(), 0.0, false}, 1.0};
  auto lanes = poisoned<double>(values.reduce_lanes_workspace(a));
  values.reduce_lanes(a, 0, 1, reduced, lanes.get());
  solve("reduce_lanes");
}

template <class T>
void check_vectors(const MatrixView& a, std::mt19937& random) {
  const int64_t r = a.short_side();
  if (r <= 32 && a.long_side() <= 64) {
    SvdBuffers<T> result(a, r);
    const SvdOutput out = result.output();
    auto work = poisoned<double>(vectors.svd_lanes_workspace(a));
    vectors.svd_lanes(a, 0, 1, &out, work.get());
    result.check("svd_lanes", a);
  }
  if (!a.is_double()) {
    SvdBuffers<T> result(a, r);
    auto work = poisoned<double>(vectors.svd_workspace(a));
    vectors.svd(a, result.output(), work.get());
    result.check("svd", a);
  }
  std::normal_distribution<double> normal;
  for (const int64_t k : {int64_t{1}, r < 7 ? r : int64_t{7}}) {
    const int64_t width = k + 8 < r ? k + 8 : r;
    // Two columns given, the others random.
    const int64_t given = width < 2 ? width : 2;
    auto start = poisoned<T>(a.n * given);
    for (int64_t i = 0; i < a.n * given; ++i)
      start[static_cast<size_t>(i)] = static_cast<T>(normal(random));
    SvdBuffers<T> result(a, k);
    const RsvdJob job = {a, k, width, 2, start.get(), given, {7, 0, 0}, result.output()};
    auto work = poisoned<double>(vectors.rsvd_workspace(job));
    vectors.rsvd(job, work.get());
    result.check("rsvd", a);
  }
}

// A cold start, an update after a small move, one after a large one; sweeps in U.
template <class T, class U>
void check_track(const MatrixView& a, T* data, std::mt19937& random) {
  const int64_t r = a.short_side();
  std::normal_distribution<double> normal;
  auto v = poisoned<U>(r * r);
  auto drift = poisoned<double>(1);
  std::vector<int64_t> names(static_cast<size_t>(r + 1), -7);
  bool warm = false;
  for (const double move : {0.0, 1e-6, 1e-3, 1.0}) {
    for (int64_t i = 0; i < a.m * a.n; ++i)
      data[i] += static_cast<T>(move * normal(random));
    auto bounds = poisoned<double>(r), report = poisoned<double>(kTrackFields);
    std::vector<int64_t> identities(static_cast<size_t>(r), -7);
    SvdBuffers<T> result(a, r);
    auto work = poisoned<double>(tracking.track_workspace(a));
    tracking.track({a, v.get(), sizeof(U) == 4, warm, 1e-3, drift.get(), names.data(),
                    result.output(), bounds.get(), identities.data(), report.get()},
                   work.get());
    result.check("track", a);
    expect_written(v, r * r, "state of track", a);
    expect_written(drift, 1, "drift of track", a);
    expect_written(bounds, r, "bounds of track", a);
    expect_written(report, kTrackFields, "report of track", a);
    for (const int64_t name : identities)
      if (name < 0) {
        std::printf("identities of track of %ld x %ld\n", static_cast<long>(a.m),
                    static_cast<long>(a.n));
        ++failures;
      }
    warm = true;
  }
}

// A block of k + 8 vectors from a cold start, warm with fresh columns, after a jump, and on zeros.
template <class T>
void check_leading(const MatrixView& a, T* data, std::mt19937& random) {
  const int64_t r = a.short_side();
  std::normal_distribution<double> normal;
  for (const int64_t k : {int64_t{1}, r < 9 ? r : int64_t{9}}) {
    const int64_t l = k + 8 < r ? k + 8 : r, fresh_columns = l < r ? 4 : 0;
    auto start = poisoned<T>(a.n * l), fresh = poisoned<T>(a.n * fresh_columns);
    for (int64_t i = 0; i < a.n * l; ++i)
      start[static_cast<size_t>(i)] = static_cast<T>(normal(random));
    for (int64_t i = 0; i < a.n * fresh_columns; ++i)
      fresh[static_cast<size_t>(i)] = static_cast<T>(normal(random));
    auto block = poisoned<T>(a.n * l);
    auto identities = poisoned<int64_t>(l + 1);
    bool warm = false;
    for (const double move : {0.0, 1e-3, 1.0, -1.0}) {
      for (int64_t i = 0; i < a.m * a.n; ++i)
        data[i] = move < 0 ? T(0) : data[i] + static_cast<T>(move * normal(random));
      auto bounds = poisoned<double>(k), residuals = poisoned<double>(k),
           report = poisoned<double>(kLeadingFields);
      SvdBuffers<T> result(a, k);
      auto work = poisoned<double>(tracking.leading_workspace(a, l));
      tracking.leading(
          {a, k, l, warm, 1e-3, block.get(), start.get(), fresh.get(), fresh_columns,
           identities.get(), result.output(), bounds.get(), residuals.get(), report.get()},
          work.get());
      result.check("leading", a);
      // A zero matrix leaves the block of a cold start as it is: unwritten.
      warm = warm || report[2] == 0.0;
      if (warm) expect_written(block, a.n * l, "block of leading", a);
      expect_written(bounds, k, "bounds of leading", a);
      expect_written(residuals, k, "residuals of leading", a);
      expect_written(report, kLeadingFields, "report of leading", a);
    }
  }
}

template <class T>
void check_passes(const MatrixView& a) {
  auto packed = poisoned<T>(a.m * a.n);
  double stats[kSnapshotFields];
  measures.snapshot(a, packed.get(), stats);
  expect_written(packed, a.m * a.n, "snapshot", a);
  // The matrix with itself, by columns (strided) and by rows (contiguous).
  auto strided = poisoned<T>(a.short_side()), contiguous = poisoned<T>(a.m);
  measures.alignment({a.data, a.data, a.dtype, a.n, 1, a.n, 1, a.short_side(), a.short_side(),
                      strided.get(), nullptr, nullptr});
  // Clusters of 1, 2, 3 and so on, the last one cut.
  auto cosine = poisoned<T>(a.m);
  std::vector<int64_t> first(static_cast<size_t>(a.m));
  for (int64_t i = 0, start = 0, size = 1; i < a.m; ++i) {
    if (i == start + size) start = i, ++size;
    first[static_cast<size_t>(i)] = start;
  }
  measures.alignment({a.data, a.data, a.dtype, 1, a.n, a.n, 1, a.n, a.m, contiguous.get(),
                      first.data(), cosine.get()});
  expect_written(cosine, a.m, "cosines of clusters", a);
  measures.alignment({a.data, a.data, a.dtype, a.n, 1, a.n, 1, a.short_side(), a.short_side(),
                      strided.get(), first.data(), cosine.get()});
  expect_written(strided, a.short_side(), "alignment, strided", a);
  expect_written(contiguous, a.m, "alignment, contiguous", a);
}

enum Kind { kRandom, kZero, kNearlyRankOne, kGraded, kKinds };

template <class T>
void check(int64_t m, int64_t n, int kind, std::mt19937& random) {
  std::normal_distribution<double> normal;
  auto data = poisoned<T>(m * n);
  for (int64_t i = 0; i < m; ++i)
    for (int64_t j = 0; j < n; ++j) {
      double x = normal(random);
      if (kind == kZero) x = 0.0;
      if (kind == kNearlyRankOne)
        x = static_cast<double>((i + 1) * (j + 1)) / static_cast<double>(m * n) + (i == j) * 1e-6;
      if (kind == kGraded) x *= std::pow(10.0, -0.5 * static_cast<double>(j));
      data[static_cast<size_t>(i * n + j)] = static_cast<T>(x);
    }
  const DType dtype = sizeof(T) == 8 ? DType::kFloat64 : DType::kFloat32;
  const MatrixView a = {data.get(), dtype, 1, m, n, m * n, n, 1};
  if (!a.is_double()) check_gram_values(a);
  check_reductions(a);
  check_vectors<T>(a, random);
  check_passes<T>(a);
  check_track<T, double>(a, data.get(), random);
  if (sizeof(T) == 4) check_track<T, float>(a, data.get(), random);
  check_leading<T>(a, data.get(), random);
}

}  // namespace

// The core of random factors, or of factors whose columns are all the same.
void check_core(int64_t m, int64_t n, int64_t k, bool dependent, std::mt19937& random) {
  std::normal_distribution<float> normal;
  auto filled = [&](int64_t count) {
    auto x = poisoned<float>(count);
    for (int64_t i = 0; i < count; ++i)
      x[static_cast<size_t>(i)] = dependent ? 1.0f : normal(random);
    return x;
  };
  const int64_t p = m < k ? m : k, q = n < k ? n : k;
  auto u = filled(m * k), sigma = filled(k * k), vh = filled(k * n);
  auto matrix = poisoned<float>(p * q), left = poisoned<float>(p * m),
       right = poisoned<float>(q * n);
  auto error = poisoned<double>(1);
  CoreJob job = {};
  job.u = {u.get(), DType::kFloat32, 1, m, k, 0, k, 1};
  job.sigma = {sigma.get(), DType::kFloat32, 1, k, k, 0, k, 1};
  job.vh = {vh.get(), DType::kFloat32, 1, k, n, 0, 1, k};  // by columns
  job.matrix = matrix.get();
  job.error = error.get();
  for (const bool vectors : {true, false}) {
    job.left = vectors ? left.get() : nullptr;
    job.right = vectors ? right.get() : nullptr;
    auto work = poisoned<double>(factored.core_workspace(job));
    factored.core(job, work.get());
    expect_written(error, 1, "error of core", job.u);
    expect_written(matrix, p * q, "core", job.u);
  }
  expect_written(left, p * m, "left of core", job.u);
  expect_written(right, q * n, "right of core", job.u);
  if (dependent && k < m && k > 1 && error[0] != -1.0) {
    std::printf("core of dependent columns: error %g\n", error[0]);
    ++failures;
  }
}

int main() {
  const int64_t shapes[][2] = {{1, 1},   {1, 5},    {5, 1},    {2, 2},    {3, 3},
                               {7, 5},   {9, 17},   {16, 16},  {31, 33},  {32, 32},
                               {33, 33}, {40, 7},   {65, 9},   {47, 129}, {64, 64},
                               {33, 64}, {100, 37}, {257, 65}, {129, 130}};
  std::mt19937 random(1);
  for (const auto& shape : shapes)
    for (int kind = 0; kind < kKinds; ++kind) {
      check<float>(shape[0], shape[1], kind, random);
      check<double>(shape[0], shape[1], kind, random);
    }
  const int64_t cores[][3] = {{1, 1, 1},    {5, 3, 1},     {3, 5, 4},     {9, 9, 9},
                              {40, 70, 33}, {65, 200, 16}, {20, 129, 64}, {150, 100, 97}};
  for (const auto& shape : cores)
    for (const bool dependent : {false, true})
      check_core(shape[0], shape[1], shape[2], dependent, random);
  std::printf("%d failures\n", failures);
  return failures != 0;
}
