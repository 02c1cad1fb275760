#include "program/edits.h"

#include <algorithm>

#include "program/levers/hoist.h"
#include "program/levers/overwrite.h"

namespace torch_ext::program {

sched::Order Edited::ToOldOps(sched::Order order) const {
  for (OpId& v : order) v = old_ops[v];
  return order;
}

sched::Order Edited::ToNewOps(sched::Order order) const {
  if (order.empty()) return order;
  std::vector<OpId> new_ops(std::max(std::ranges::max(order), std::ranges::max(old_ops)) + 1,
                            sched::kNoOp);
  for (std::size_t v = 0; v < old_ops.size(); ++v) new_ops[old_ops[v]] = static_cast<OpId>(v);
  for (OpId& v : order) v = new_ops[v];
  std::erase(order, sched::kNoOp);
  return order;
}

OpId OldOpOfCopy(const Program& old, std::size_t copy) {
  return static_cast<OpId>(old.ops.size() + copy);
}

std::optional<Edited> WithEdits(const Program& program, const Edits& edits) {
  Edited hoisted = WithHoists(program, edits.hoists);
  std::optional<Edited> edited = WithOverwrites(hoisted.program, edits.overwrites);
  if (!edited) return edited;
  edited->old_ops = hoisted.ToOldOps(std::move(edited->old_ops));
  edited->new_buffers.resize(program.buffers.size());
  return edited;
}

}  // namespace torch_ext::program
