// Chunked attention: its window in chunks, and what its summaries need.

#pragma once

#include <algorithm>

#include "plan_parts.h"

namespace mmer::cuda {

// Chunked attention in numbers that a longer lookback than the sequence does not overflow.
struct Chunks {
  int32_t size, count, lookback, lookahead, summaries, causal;

  explicit Chunks(const ChunkedCall& call) {
    const int64_t time = position(call.tokens.query.shape[2]);
    size = static_cast<int32_t>(std::min(call.chunk_size, std::max<int64_t>(time, 1)));
    count = static_cast<int32_t>(tiles_of(time, size));
    lookback = static_cast<int32_t>(std::min<int64_t>(call.lookback, count));
    lookahead = call.causal ? 0 : static_cast<int32_t>(std::min<int64_t>(call.lookahead, count));
    summaries = static_cast<int32_t>(std::min<int64_t>(call.max_summaries, count));
    causal = call.causal;
  }
  Window tokens_of_query() const { return {size, size, -lookback, lookahead + 1, causal}; }
  Window queries_of_token() const { return {size, size, -lookahead, lookback + 1, -causal}; }
  Window summaries_of_query() const { return {size, 1, -lookback - summaries, -lookback, 0}; }
  Window queries_of_summary() const { return {1, size, lookback + 1, lookback + summaries + 1, 0}; }
};

// Adds the plan that counts the real tokens of each chunk; returns where the counts will stand.
float* plan_counts(std::vector<Plan>& plans, const ChunkedCall& call, const Shape& shape,
                   const Chunks& chunks, const Allocate& allocate);

SequenceView summaries_of(const ChunkedCall& call);

}  // namespace mmer::cuda
