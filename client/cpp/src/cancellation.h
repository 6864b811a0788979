// The calls that a Cancellation ends.
#pragma once

#include <grpcpp/client_context.h>

#include <mutex>
#include <set>

#include "wasmkiln/client.h"

namespace wasmkiln {

struct Cancellation::State {
  std::mutex mutex;
  bool is_cancelled = false;
  std::set<grpc::ClientContext*> calls;
};

// Holds a call in a Cancellation, which may be null, as long as it lives.
class Cancellable {
 public:
  Cancellable(const std::shared_ptr<Cancellation>& cancellation, grpc::ClientContext* call);
  ~Cancellable();
  Cancellable(const Cancellable&) = delete;
  Cancellable& operator=(const Cancellable&) = delete;

 private:
  std::shared_ptr<Cancellation> cancellation_;
  grpc::ClientContext* call_;
};

}  // namespace wasmkiln
