// Threads that work on one call together, and the barrier at which they wait for each other.
#pragma once
#include <atomic>
#ifdef _OPENMP
#include <omp.h>
#endif
#ifdef __linux__
#include <climits>
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#else
#include <thread>
#endif

static inline void pause_briefly() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// A number that threads wait for to change. The OpenMP runtime's own barrier spins for milliseconds: where another process
// wants the core, the thread that is waited for does not run meanwhile, and a decoding step has more than a hundred waits.
// Here the core is soon given away. It belongs to one call, since several threads of the program may decode at once.
class Signal {
    enum { PAUSES = 500 };  // 10 to 25 us: longer than threads lag behind each other where nobody else runs
    std::atomic<int> number{0}, sleepers{0};

#ifdef __linux__
    void sleep(int seen) { syscall(SYS_futex, &number, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0); }
    void wake() { syscall(SYS_futex, &number, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0); }
#else
    void sleep(int) { std::this_thread::yield(); }
    void wake() {}
#endif

public:
    int value() const { return number.load(std::memory_order_acquire); }
    void change(int to) {
        number.store(to);
        if (sleepers.load()) wake();
    }
    void wait_for_change(int seen) {
        for (int i = 0; i < PAUSES; i++) {
            if (value() != seen) return;
            pause_briefly();
        }
        sleepers.fetch_add(1);  // before looking again: who changes it looks at `sleepers` behind having done so
        while (number.load() == seen) sleep(seen);
        sleepers.fetch_sub(1);
    }
};

// Where all threads of a team wait for each other.
class Barrier {
    std::atomic<int> arrived{0};
    Signal generation;

public:
    void wait(int team) {
        if (team < 2) return;
        const int mine = generation.value();
        if (arrived.fetch_add(1) + 1 < team) return generation.wait_for_change(mine);
        arrived.store(0);
        generation.change(mine + 1);
    }
};

// Runs `body` in up to `threads` threads; it knows its `thread`, the size of its `team`, and `wait_for_all`.
#define IN_TEAM(number, size, body)                                   \
    {                                                                 \
        const int thread = number, team = size;                       \
        const auto wait_for_all = [&barrier, team] { barrier.wait(team); }; \
        body                                                          \
    }
#ifdef _OPENMP
#define TEAM(threads, body)                                                                                         \
    {                                                                                                               \
        Barrier barrier;                                                                                            \
        if ((threads) > 1) {                                                                                        \
            _Pragma("omp parallel num_threads(threads)") IN_TEAM(omp_get_thread_num(), omp_get_num_threads(), body) \
        } else IN_TEAM(0, 1, body)                                                                                  \
    }
#else
#define TEAM(threads, body)                \
    {                                      \
        Barrier barrier;                   \
        IN_TEAM(0, 1, body)                \
    }
#endif
