// What the driver asks of a set of kernels, one set per instruction set. Plain data and function
// pointers only: this header is shared by files compiled for different machines.
#pragma once

#include <cstdint>

#include "cpu/matrix_view.h"
#include "include/summary_bounds.h"

namespace spectral {

// Where the eigenvalues of one positive tridiagonal B^T B come from and go to.
struct QdProblem {
  int64_t n;
  double* q;    // n squares of B's diagonal; replaced by the eigenvalues, unordered
  double* e;    // n - 1 squares of its superdiagonal (room for n); destroyed
  double drop;  // an e_i below this is dropped: it moves no singular value by more than sqrt(drop)
  bool converged;
};

// A matrix reduced to a QdProblem: sigma = sqrt(eigenvalue) * largest * unscale, from left to
// right: the product of the last two may overflow where a value does not.
struct Reduced {
  QdProblem problem;
  double largest;  // entry of the bidiagonal
  double unscale;  // a power of two; NaN for a matrix with NaN or infinity inside
};

// U and Vh by rows: ut (r, m) is U transposed, vh (r, n). float64 for float64 input, else float32.
struct SvdOutput {
  void* ut;
  void* s;
  void* vh;
};

// Which random block: of one seed, that of one entry of the batch of one matrix of a list.
struct NormalsPlan {
  uint64_t seed;
  uint32_t entry, matrix;
};

struct RsvdPlan {
  int64_t rank, width, power_iters;
  const void* start;  // (n, given): the first columns of the start block; the others are random
  int64_t given;
  NormalsPlan random;
};

// What a tracker keeps of a matrix, and what it tells of an update (spectral_kernels/_C.pyi).
struct TrackPlan {
  void* v;      // (r, r): columns are the vectors on the short side, in an order of their own
  bool single;  // v is float32 and sweeps are; else both are float64
  bool warm;
  double tolerance;
  double* drift;        // of v from orthonormal, a bound; kept with it
  int64_t* names;       // (r + 1): the identity of each column of v, then the next fresh one
  double* bounds;       // (r)
  int64_t* identities;  // (r): of the vectors in order; -1 for a matrix that is not finite
  double* report;       // kTrackFields
};

// Work done (a code of Work), and the bound of the 2-norm of all errors.
constexpr int kTrackFields = 2;

// The same for a tracker of k leading triplets. block, start and fresh are of the type of results.
struct LeadingPlan {
  int64_t k, l;
  bool warm;
  double tolerance;
  void* block;        // (n, l) right vectors; read where warm
  const void* start;  // (n, l) random: for a block that is started anew
  const void* fresh;  // (n, fresh_columns) random, in place of the last of a warm block
  int64_t fresh_columns;
  int64_t* identities;  // (l + 1): a number for every vector of the block, and the next one
  double* bounds;       // (k)
  double* residuals;    // (k)
  double* report;       // kLeadingFields
};

// Work done (0 for a new start, else iterations), iterations, whether A is zero, the bound of the
// 2-norm of all errors, ||A||_F.
constexpr int kLeadingFields = 5;

struct AlignmentPair {
  const void* u;
  const void* v;
  DType dtype;
  int64_t u_stride_row, u_stride_col, v_stride_row, v_stride_col;
  int64_t length, count;
  void* out;
  // Cosines of clusters as well, unless null: the first index of each vector's cluster (count),
  // ascending, and where the cosines go (count).
  const int64_t* first;
  void* cosine;
};

struct SnapshotStats {
  double max_abs, frobenius_norm, finite;
};

// One U (m x k) Sigma (k x k) Vh (k x n), none of them float64, p = min(m, k), q = min(k, n).
struct CorePlan {
  MatrixView u, sigma, vh;
  float* matrix;  // (p, q)
  double* error;  // of its singular values; -1 where another method must find them
  float* left;    // (p, m): left vectors by columns; null where they are not wanted
  float* right;   // (q, n), or null
};

constexpr int64_t kGramPart = 16;

struct Kernels {
  const char* name;
  int lanes;

  // Singular values of one matrix that is not float64: columns of its Gram matrix, in parts that
  // start at multiples of kGramPart, then all values.
  int64_t (*gram_size)(const MatrixView&);
  int64_t (*gram_workspace)(const MatrixView&);
  void (*gram_part)(const MatrixView&, int64_t first, int64_t last, double* g, double* work);
  void (*gram_values)(const MatrixView&, double* g, float* s, double* work);

  // Reduction of `count` <= lanes small matrices from `first` on, or of one float64 matrix.
  int64_t (*reduce_lanes_workspace)(const MatrixView&);
  void (*reduce_lanes)(const MatrixView&, int64_t first, int count, Reduced*, double* work);
  int64_t (*reduce_workspace)(const MatrixView&);
  void (*reduce)(const MatrixView&, Reduced*, double* work);

  int64_t (*qd_workspace)(int64_t longest, int count);
  void (*qd)(QdProblem*, int count, double* work);

  int64_t (*svd_lanes_workspace)(const MatrixView&);
  void (*svd_lanes)(const MatrixView&, int64_t first, int count, const SvdOutput*, double* work);
  int64_t (*svd_workspace)(const MatrixView&);
  void (*svd)(const MatrixView&, const SvdOutput&, double* work);

  int64_t (*rsvd_workspace)(const MatrixView&, const RsvdPlan&);
  void (*rsvd)(const MatrixView&, const RsvdPlan&, const SvdOutput&, double* work);
  void (*normals)(const NormalsPlan&, int64_t n, int64_t first, int64_t last, float* out,
                  int64_t ld);

  int64_t (*track_workspace)(const MatrixView&);
  void (*track)(const MatrixView&, const TrackPlan&, const SvdOutput&, double* work);

  int64_t (*leading_workspace)(const MatrixView&, int64_t l);
  void (*leading)(const MatrixView&, const LeadingPlan&, const SvdOutput&, double* work);

  int64_t (*core_workspace)(const CorePlan&);
  void (*core)(const CorePlan&, double* work);

  void (*alignment)(const AlignmentPair&);
  void (*snapshot)(const MatrixView&, void* packed, SnapshotStats*);
};

const Kernels& kernels_generic();
const Kernels& kernels_avx2();
const Kernels& kernels_avx512();

}  // namespace spectral
