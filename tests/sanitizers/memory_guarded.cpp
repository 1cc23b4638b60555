// Arrays that end at a page whose access faults, for kernels that are built without a sanitizer.
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>

#include "support.h"

namespace cogen {
namespace driver {
namespace {

size_t page_size() {
  static const size_t size = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return size;
}

size_t whole_pages(size_t bytes) { return (bytes + page_size() - 1) / page_size() * page_size(); }

}  // namespace

void* allocate(size_t bytes) {
  const size_t usable = whole_pages(bytes);
  void* base = mmap(nullptr, usable + page_size(), PROT_READ | PROT_WRITE,
                    MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (base == MAP_FAILED || mprotect(static_cast<char*>(base) + usable, page_size(), PROT_NONE)) {
    perror("allocate");
    exit(1);
  }
  return static_cast<char*>(base) + (usable - bytes);
}

void release(void* block, size_t bytes) {
  const size_t usable = whole_pages(bytes);
  if (block) munmap(static_cast<char*>(block) - (usable - bytes), usable + page_size());
}

}  // namespace driver
}  // namespace cogen
