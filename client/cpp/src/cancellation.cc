#include "cancellation.h"

namespace wasmkiln {

Cancellation::Cancellation() : state_(std::make_unique<State>()) {}
Cancellation::~Cancellation() = default;

void Cancellation::cancel() {
  std::lock_guard<std::mutex> lock(state_->mutex);
  state_->is_cancelled = true;
  for (grpc::ClientContext* call : state_->calls) call->TryCancel();
}

Cancellable::Cancellable(const std::shared_ptr<Cancellation>& cancellation,
                         grpc::ClientContext* call)
    : cancellation_(cancellation), call_(call) {
  if (!cancellation_) return;
  std::lock_guard<std::mutex> lock(cancellation_->state_->mutex);
  cancellation_->state_->calls.insert(call_);
  // gRPC remembers it for a call that has not begun.
  if (cancellation_->state_->is_cancelled) call_->TryCancel();
}

Cancellable::~Cancellable() {
  if (!cancellation_) return;
  std::lock_guard<std::mutex> lock(cancellation_->state_->mutex);
  cancellation_->state_->calls.erase(call_);
}

}  // namespace wasmkiln
