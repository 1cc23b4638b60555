// The checks of this program, one file each.
#pragma once

namespace cogen {
namespace driver {

void check_emulated_published();

}  // namespace driver
}  // namespace cogen
