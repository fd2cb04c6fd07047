// The random words that dropout compares with its threshold, written out for a range of attention
// rows.

#pragma once

#include <cstdint>

namespace mmer {

// bits: (batch_heads, queries, keys), of which rows [row_begin, row_end) are written; row =
// batch_head * queries + query.
void write_dropout_bits(int64_t* bits, int64_t seed, int64_t queries, int64_t keys, int64_t stream,
                        int64_t row_begin, int64_t row_end);

}  // namespace mmer
