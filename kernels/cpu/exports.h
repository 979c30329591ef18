// What the files of C entry points share. These are called through ctypes with plain pointers. Element types: 0 float, 1 bf16,
// 2 fp16. Every function does its own share in each thread of one parallel region; sizes were checked by the caller. What takes
// long to compile is a file of its own, since files are compiled side by side.
#pragma once
#include <cstddef>
#include "team.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

// Below this many bytes of work waking the other threads costs more than it saves.
static const size_t WORTH_A_TEAM = 96 << 10;
static inline int team_for(size_t bytes, int threads) { return bytes < WORTH_A_TEAM ? 1 : threads; }
static inline size_t width(int type) { return type == 0 ? 4 : 2; }
