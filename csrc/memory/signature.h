// What tells the calls of a program apart that may allocate differently: dtypes, sizes, and strides
// where they are not the usual ones. `Float[1,3,224,224] Long[1,128]`.
//
// Templates, so that this needs no more of LibTorch than c10: for at::Tensor, c10::TensorImpl, and
// c10::IValue, whose values other than tensors count by their kind alone.
#pragma once

#include <c10/core/ScalarType.h>

#include <initializer_list>
#include <string>

namespace torch_ext::memory {

template <typename Numbers>
void AppendNumbers(std::string& text, const Numbers& numbers) {
  const char* before = "[";
  for (const auto number : numbers) {
    text += before + std::to_string(number);
    before = ",";
  }
  text += *before == '[' ? "[]" : "]";
}

template <typename Value>
void AppendSignature(std::string& text, const Value& value) {
  if constexpr (requires { value.isTensor(); }) {
    if (value.isTensor()) {
      AppendSignature(text, value.toTensor());
    } else {
      text += (text.empty() ? "" : " ") + value.tagKind();
    }
  } else {
    if (!text.empty()) text += ' ';
    if constexpr (requires { value.defined(); }) {
      if (!value.defined()) {
        text += "None";
        return;
      }
    }
    text += c10::toString(c10::typeMetaToScalarType(value.dtype()));
    AppendNumbers(text, value.sizes());
    if (value.is_contiguous()) return;
    text += "/";
    AppendNumbers(text, value.strides());
  }
}

// Of a vector, an array or a list of such values.
template <typename Values>
std::string SignatureOf(const Values& values) {
  std::string text;
  for (const auto& value : values) AppendSignature(text, value);
  return text;
}

}  // namespace torch_ext::memory
