// What trackers decide by, and the codes of what they did. The same numbers stand in
// spectral_kernels/tracking/{whole,leading}/state.py, for the other backends; a test compares them.
#pragma once

namespace spectral {

// The most rotations before a whole spectrum is solved anew.
constexpr int kRotations = 3;

// Iterations of leading triplets: as many as a block that is followed may take, and one that is
// started anew.
constexpr int kWarmIterations = 3;
constexpr int kColdIterations = 16;
// The last half step may still move a value by this part of the tolerance: what the ones to come
// would add is a few times as much (measured on flat spectra, where it is most).
constexpr double kSettled = 0.1;
// A value that still moves by this part of it in the last warm iteration was not being followed.
constexpr double kUnsettled = 1.0;
// Of a gain that is left to an iteration more: less than this is no progress.
constexpr double kProgress = 0.5;

// Codes of work done: 0 for vectors that still hold, 1 to 3 for so many rotations, of leading
// triplets iterations, and for all kinds of matrices alike:
constexpr int kSolvedCode = 4, kNotFiniteCode = -1;
static_assert(kSolvedCode == kRotations + 1);

}  // namespace spectral
