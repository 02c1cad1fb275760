#include "sched/search.h"

#include <algorithm>
#include <bit>
#include <utility>

namespace torch_ext::sched {

namespace {

constexpr std::int64_t kLooksToPush = 8;  // a queue, a table, memory that is not in a cache

}  // namespace

DownSetSearch::DownSetSearch(StateSpace space, std::int64_t floor_bytes, std::int64_t below_bytes)
    : space_(std::move(space)), below_bytes_(below_bytes), table_(64), key_bytes_(floor_bytes) {
  scratch_ = space_.start();
  std::int64_t looks = 0;
  const std::int64_t live_bytes = space_.TakeSafeSteps(scratch_.data(), space_.start_bytes(),
                                                       floor_bytes, /*steps=*/nullptr, looks);
  Push(live_bytes, floor_bytes, -1, kNoOp);
}

DownSetSearch::Found DownSetSearch::FindGoal(Budget& budget) {
  for (std::int32_t node; (node = Settle()) >= 0;) {
    key_bytes_ = nodes_[node].key_bytes;
    if (nodes_[node].num_steps == space_.num_steps()) {
      found_ = node;
      return Found::kGoal;
    }
    if (!Expand(node, budget)) return Found::kOutOfBudget;
  }
  key_bytes_ = below_bytes_;
  return Found::kNothing;
}

DownSetSearch::Found DownSetSearch::FindLowerValley(Budget& budget) {
  std::int64_t lowest_bytes = space_.start_bytes();
  for (std::int32_t node; (node = Settle()) >= 0;) {
    if (nodes_[node].key_bytes > key_bytes_ && found_ >= 0) return Found::kLowerValley;
    key_bytes_ = nodes_[node].key_bytes;
    if (nodes_[node].live_bytes < lowest_bytes) {
      lowest_bytes = nodes_[node].live_bytes;
      found_ = node;
    }
    if (!Expand(node, budget)) return Found::kOutOfBudget;
  }
  return found_ >= 0 ? Found::kLowerValley : Found::kNothing;
}

std::int32_t DownSetSearch::Settle() {
  while (!queue_.empty()) {
    const Entry entry = queue_.top();
    queue_.pop();
    Node& node = nodes_[entry.node];
    if (node.settled || entry.key_bytes > node.key_bytes) continue;
    if (entry.key_bytes >= below_bytes_) return -1;  // and all that follow
    node.settled = true;
    return entry.node;
  }
  return -1;
}

bool DownSetSearch::Expand(std::int32_t from, Budget& budget) {
  parent_bits_.assign(BitsOf(from), BitsOf(from) + space_.words_per_state());
  const Node node = nodes_[from];
  std::int64_t looks = 1;
  const auto step = [&](OpId v) {
    ++looks;
    const State::Move move = space_.Look(parent_bits_.data(), node.live_bytes, v);
    const std::int64_t key = std::max(node.key_bytes, move.hill_bytes);
    if (key >= below_bytes_) return;
    scratch_ = parent_bits_;
    std::int64_t live_bytes = move.live_bytes;
    if (key == node.key_bytes) {
      live_bytes = space_.StepSafely(scratch_.data(), node.live_bytes, key, v, looks);
    } else {
      space_.Step(scratch_.data(), v);
      live_bytes = space_.TakeSafeSteps(scratch_.data(), live_bytes, key, /*steps=*/nullptr, looks);
    }
    looks += kLooksToPush + static_cast<std::int64_t>(space_.words_per_state() / 4);
    Push(live_bytes, key, from, v);
  };
  const OpId v = space_.FindSafeRun(parent_bits_.data(), node.live_bytes, node.key_bytes, looks);
  if (v != kNoOp) {
    step(v);
  } else {
    space_.ForEach(space_.ready(parent_bits_.data()), step);
  }
  return budget.Spend(looks) && UsedBytes() < budget.memory_bytes();
}

void DownSetSearch::Push(std::int64_t live_bytes, std::int64_t key_bytes, std::int32_t parent,
                         OpId op) {
  const std::int32_t known = FindOrReserve();
  const bool is_new = known < 0;
  const std::int32_t at = is_new ? static_cast<std::int32_t>(nodes_.size()) : known;
  if (is_new) {
    std::int32_t num_steps = 0;
    for (std::size_t w = 0; w < space_.words_per_set(); ++w) {
      num_steps += __builtin_popcountll(scratch_[w] & ~space_.start()[w]);
    }
    nodes_.push_back({key_bytes, live_bytes, parent, op, num_steps, false});
    bits_.insert(bits_.end(), scratch_.begin(), scratch_.end());
  } else {
    Node& node = nodes_[at];
    if (node.key_bytes <= key_bytes) return;
    node.key_bytes = key_bytes;
    node.parent = parent;
    node.op = op;
  }
  const Node& node = nodes_[at];
  queue_.push({key_bytes, space_.num_steps() - node.num_steps, live_bytes, at});
  if (is_new && nodes_.size() * 2 > table_.size()) GrowTable();
}

std::int32_t DownSetSearch::FindOrReserve() {
  const std::uint32_t hash = Hash(scratch_.data());
  const std::size_t mask = table_.size() - 1;
  for (std::size_t i = hash & mask;; i = (i + 1) & mask) {
    Slot& slot = table_[i];
    if (slot.node < 0) {
      slot = {static_cast<std::int32_t>(nodes_.size()), hash};
      return -1;
    }
    if (slot.hash == hash &&
        std::equal(scratch_.begin(),
                   scratch_.begin() + static_cast<std::ptrdiff_t>(space_.words_per_set()),
                   BitsOf(slot.node))) {
      return slot.node;
    }
  }
}

void DownSetSearch::GrowTable() {
  std::vector<Slot> old(table_.size() * 4);
  old.swap(table_);
  const std::size_t mask = table_.size() - 1;
  for (const Slot& slot : old) {
    if (slot.node < 0) continue;
    std::size_t i = slot.hash & mask;
    while (table_[i].node >= 0) i = (i + 1) & mask;
    table_[i] = slot;
  }
}

// After Appleby's MurmurHash3: every bit of the set reaches the low bits, which choose the slot.
std::uint32_t DownSetSearch::Hash(const StateSpace::Word* set) const {
  std::uint64_t hash = 0x9e3779b97f4a7c15u;
  for (std::size_t w = 0; w < space_.words_per_set(); ++w) {
    hash ^= std::rotl(set[w] * 0x87c37b91114253d5u, 31) * 0x4cf5ad432745937fu;
    hash = std::rotl(hash, 27) * 5 + 0x52dce729u;
  }
  hash = (hash ^ (hash >> 33)) * 0xff51afd7ed558ccdu;
  hash = (hash ^ (hash >> 33)) * 0xc4ceb9fe1a85ec53u;
  return static_cast<std::uint32_t>(hash ^ (hash >> 33));
}

std::int64_t DownSetSearch::UsedBytes() const {
  return static_cast<std::int64_t>(nodes_.size() * sizeof(Node) + bits_.size() * sizeof(bits_[0]) +
                                   table_.size() * sizeof(table_[0]) +
                                   queue_.size() * sizeof(Entry));
}

std::vector<OpId> DownSetSearch::StepsToFound() {
  std::vector<std::int32_t> way;
  for (std::int32_t node = found_; node >= 0; node = nodes_[node].parent) way.push_back(node);
  std::reverse(way.begin(), way.end());
  std::vector<OpId> steps;
  std::vector<StateSpace::Word> state = space_.start();
  std::int64_t live_bytes = space_.start_bytes();
  std::int64_t looks = 0;
  for (std::int32_t node : way) {  // safe steps depend on state and key only, so they repeat
    const OpId v = nodes_[node].op;
    if (v != kNoOp) {
      live_bytes = space_.Look(state.data(), live_bytes, v).live_bytes;
      space_.Step(state.data(), v);
      steps.push_back(v);
    }
    live_bytes =
        space_.TakeSafeSteps(state.data(), live_bytes, nodes_[node].key_bytes, &steps, looks);
  }
  return steps;
}

}  // namespace torch_ext::sched
