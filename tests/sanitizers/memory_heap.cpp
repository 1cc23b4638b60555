// Arrays on the heap: AddressSanitizer knows their first and last byte.
#include <new>

#include "support.h"

namespace cogen {
namespace driver {

constexpr std::align_val_t kAlignment{64};

void* allocate(size_t bytes) { return ::operator new(bytes, kAlignment); }
void release(void* block, size_t) { ::operator delete(block, kAlignment); }

}  // namespace driver
}  // namespace cogen
