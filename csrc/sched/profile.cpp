#include "sched/profile.h"

#include <algorithm>

namespace torch_ext::sched {
namespace {

// Memory at the start of each segment and at the very end, above the first.
std::vector<std::int64_t> Valleys(std::span<const Segment> segments) {
  std::vector<std::int64_t> valleys{0};
  for (const Segment& s : segments) valleys.push_back(valleys.back() + s.net_bytes);
  return valleys;
}

std::int64_t PeakAboveStart(std::span<const Segment> segments) {
  std::int64_t peak = 0, start = 0;
  for (const Segment& s : segments) {
    peak = std::max(peak, start + s.hill_bytes);
    start += s.net_bytes;
  }
  return peak;
}

}  // namespace

std::vector<Segment> SegmentsOf(const Profile& profile) {
  std::vector<Segment> segments;
  std::int64_t start = profile.start_bytes;
  for (std::size_t i = 0; i < profile.hill_bytes.size(); ++i) {
    segments.push_back({profile.hill_bytes[i] - start, profile.valley_bytes[i] - start, 1});
    start = profile.valley_bytes[i];
  }
  return segments;
}

std::vector<Segment> Canonical(std::span<const Segment> segments) {
  const std::size_t n = segments.size();
  const std::vector<std::int64_t> valley = Valleys(segments);
  const auto hill = [&](std::size_t i) { return valley[i] + segments[i].hill_bytes; };
  const auto cut = static_cast<std::size_t>(std::ranges::min_element(valley) - valley.begin());

  // Walking left from i: the last highest hill and the last lowest valley; rightwards likewise.
  std::vector<std::size_t> high_left(n), low_left(n + 1, 0), high_right(n), low_right(n + 1, n);
  for (std::size_t i = 0; i < n; ++i) {
    high_left[i] = i > 0 && hill(high_left[i - 1]) >= hill(i) ? high_left[i - 1] : i;
    low_left[i + 1] = valley[low_left[i]] <= valley[i + 1] ? low_left[i] : i + 1;
  }
  for (std::size_t i = n; i-- > 0;) {
    high_right[i] = i + 1 < n && hill(high_right[i + 1]) >= hill(i) ? high_right[i + 1] : i;
    low_right[i] = valley[low_right[i + 1]] <= valley[i] ? low_right[i + 1] : i;
  }

  std::vector<std::size_t> ends;  // of the segments: indices into valley, ascending
  for (std::size_t at = cut; at > 0;) {
    ends.push_back(at);
    at = low_left[high_left[at - 1]];
  }
  std::ranges::reverse(ends);
  const std::size_t num_falling = ends.size();
  for (std::size_t at = cut; at < n;) {
    at = low_right[high_right[at] + 1];
    ends.push_back(at);
  }
  // The hill of a falling segment at the cut is the highest before the cut, that of a rising one
  // the highest after it.
  if (num_falling > 0 && num_falling < ends.size() && valley[ends[num_falling]] == valley[cut] &&
      hill(high_left[cut - 1]) >= hill(high_right[cut])) {
    ends.erase(ends.begin() + static_cast<std::ptrdiff_t>(num_falling) - 1);
  }

  std::vector<Segment> canonical;
  std::size_t begin = 0;
  for (std::size_t end : ends) {
    Segment segment{0, valley[end] - valley[begin], 0};
    for (std::size_t i = begin; i < end; ++i) {
      segment.hill_bytes = std::max(segment.hill_bytes, hill(i) - valley[begin]);
      segment.num_ops += segments[i].num_ops;
    }
    canonical.push_back(segment);
    begin = end;
  }
  return canonical;
}

bool Dominates(std::span<const Segment> p, std::span<const Segment> q) {
  if (PeakAboveStart(p) > PeakAboveStart(q)) return false;
  // From the start: under each hill of Q, P must come down as low as Q does behind it.
  std::size_t i = 0;
  std::int64_t p_valley = 0, q_valley = 0;
  for (const Segment& s : q) {
    if (s.net_bytes >= 0) break;
    const std::int64_t limit = q_valley + s.hill_bytes;
    q_valley += s.net_bytes;
    while (i < p.size() && p[i].net_bytes < 0 && p_valley + p[i].hill_bytes <= limit) {
      p_valley += p[i++].net_bytes;
    }
    if (p_valley > q_valley) return false;
  }
  // The same from the end.
  std::int64_t p_end = Valleys(p).back(), q_end = Valleys(q).back();
  if (p_end > q_end) return false;
  std::size_t left = p.size();
  for (std::size_t k = q.size(); k-- > 0 && q[k].net_bytes >= 0;) {
    const std::int64_t limit = q_end - q[k].net_bytes + q[k].hill_bytes;
    q_end -= q[k].net_bytes;
    while (left > 0 && p[left - 1].net_bytes >= 0 &&
           p_end - p[left - 1].net_bytes + p[left - 1].hill_bytes <= limit) {
      p_end -= p[--left].net_bytes;
    }
    if (p_end > q_end) return false;
  }
  return true;
}

std::vector<MergedSegment> MergeIndependent(std::span<const std::vector<Segment>> parts) {
  std::vector<MergedSegment> falling, rising;
  for (std::size_t p = 0; p < parts.size(); ++p) {
    for (std::size_t s = 0; s < parts[p].size(); ++s) {
      (parts[p][s].net_bytes < 0 ? falling : rising).push_back({p, s});
    }
  }
  const auto segment = [&](const MergedSegment& m) -> const Segment& {
    return parts[m.part][m.segment];
  };
  std::ranges::stable_sort(falling, {},
                           [&](const MergedSegment& m) { return segment(m).hill_bytes; });
  std::ranges::stable_sort(rising, std::ranges::greater(), [&](const MergedSegment& m) {
    return segment(m).hill_bytes - segment(m).net_bytes;
  });
  falling.insert(falling.end(), rising.begin(), rising.end());
  return falling;
}

}  // namespace torch_ext::sched
