// Sums over tensor-parallel ranks: processes of one host, which share a piece of memory. Each puts its part down there, says so,
// and adds up what all have put down, in the order of the ranks: all get the same bits. The library's all-reduce goes through
// sockets and threads of its own: 400 us for 4 KB between two processes, where this takes a few.
#pragma once
#include <cerrno>
#include <csignal>
#include <ctime>
#include <poll.h>
#include "linear.h"
#include "team.h"

struct RankState {  // the beginning of the memory has one of each rank, in a cache line of its own
    alignas(64) std::atomic<uint32_t> number;  // of parts that it has put down
    std::atomic<uint32_t> sleepers;            // that wait for more
    uint64_t what[2];                          // its last parts are, by turns: all ranks must mean the same
};

// Behind the states each rank has two slots, by turns: whoever puts down a part has read all parts before the last one, and so
// has everybody whose last part is there.
struct Ranks {  // as ranks.py's
    uint8_t* memory;
    size_t rank, count, slot;             // slot: bytes, a multiple of 64
    const int32_t *processes, *handles;   // handles become readable when a process ends; -1: there is none
    size_t patience;                      // seconds

    enum Failure { NONE = 0, ENDED = 1, LATE = 2, APART = 3 };  // of a rank: what is returned is 4 * rank + failure

    // values (count) become the sums over all ranks, in FP32, rounded once.
    template <class T> int add_up(T* values, size_t size) const {
        const size_t most = slot / sizeof(T);
        for (size_t first = 0; first < size; first += most) {
            const size_t some = size - first < most ? size - first : most;
            uint32_t number;
            if (const int failure = exchange(values + first, some * sizeof(T), 0, type_number(values), number)) return failure;
            add(number, values + first, some);
        }
        return NONE;
    }
    // out (rows, count, bytes) from each rank's part (rows, bytes); a row fits into a slot.
    int gather(const uint8_t* part, size_t rows, size_t bytes, uint8_t* out) const {
        const size_t most = slot / bytes;
        for (size_t first = 0; first < rows; first += most) {
            const size_t some = rows - first < most ? rows - first : most;
            uint32_t number;
            if (const int failure = exchange(part + first * bytes, some * bytes, bytes, GATHERED, number)) return failure;
            for (size_t row = 0; row < some; row++)
                for (size_t from = 0; from < count; from++)
                    std::memcpy(out + ((first + row) * count + from) * bytes, slot_of(from, number) + row * bytes, bytes);
        }
        return NONE;
    }

private:
    enum { PAUSES = 1000, SLICE = 100 };  // SLICE: milliseconds, between two looks at who is still there
    enum { GATHERED = 3 };                // beside the types of numbers
    RankState& state(size_t of) const { return ((RankState*)memory)[of]; }
    uint8_t* slot_of(size_t of, uint32_t number) const {
        return memory + count * sizeof(RankState) + (2 * of + number % 2) * slot;
    }

    // Puts a part down, of rows of so many bytes, and waits for those of all others, which have the same number.
    int exchange(const void* part, size_t bytes, size_t row, int kind, uint32_t& number) const {
        RankState& own = state(rank);
        number = own.number.load(std::memory_order_relaxed) + 1;
        std::memcpy(slot_of(rank, number), part, bytes);
        const uint64_t what = own.what[number % 2] = uint64_t(row) << 32 | bytes << 2 | kind;
        own.number.store(number);
        if (own.sleepers.load()) wake(own);
        for (size_t other = 0; other < count; other++) {
            if (other == rank) continue;
            Failure failure = wait_for(other, number);
            if (!failure && state(other).what[number % 2] != what) failure = APART;
            if (failure) return int(4 * other + failure);
        }
        return NONE;
    }
    template <class T> void add(uint32_t number, T* out, size_t size) const {
        for (size_t j = 0; j < size; j += W) {
            const size_t some = size - j;
            vec total = fill(0.0f);
            for (size_t from = 0; from < count; from++) {
                const T* part = (const T*)slot_of(from, number) + j;
                const vec values = some < W ? load_part(part, some) : load(part);
                total = from ? ::add(total, values) : values;
            }
            if (some < W) store_part(out + j, total, some);
            else store(out + j, total);
        }
    }
    Failure wait_for(size_t other, uint32_t number) const {
        RankState& its = state(other);
        const auto ahead = [&] { return int32_t(its.number.load() - number); };  // by one, if it has come to the next sum
        for (int i = 0; i < PAUSES && ahead() < 0; i++) pause_briefly();
        Failure failure = NONE;
        if (ahead() < 0) {
            its.sleepers.fetch_add(1);  // before looking again: who puts a part down looks at `sleepers` behind having done so
            // Slices are counted, not the clock: while this process itself is stopped no time shall pass.
            for (size_t slices = 0; ahead() < 0 && !failure; slices++) {
                sleep(its, number - 1);
                if (ahead() >= 0) break;
                if (has_ended(other)) failure = ENDED;
                else if (slices * SLICE >= patience * 1000) failure = LATE;
            }
            its.sleepers.fetch_sub(1);
        }
        return ahead() < 0 ? failure : ahead() > 1 ? APART : NONE;
    }
    bool has_ended(size_t other) const {
        pollfd one = {handles[other], POLLIN, 0};
        if (one.fd >= 0) return poll(&one, 1, 0) > 0;
        return kill(processes[other], 0) != 0 && errno == ESRCH;  // nobody has asked how it ended: not seen
    }
#ifdef __linux__
    static void sleep(RankState& its, uint32_t seen) {
        const timespec slice = {0, SLICE * 1000000L};
        syscall(SYS_futex, &its.number, FUTEX_WAIT, seen, &slice, nullptr, 0);
    }
    static void wake(RankState& own) { syscall(SYS_futex, &own.number, FUTEX_WAKE, INT_MAX, nullptr, nullptr, 0); }
#else
    static void sleep(RankState&, uint32_t) { std::this_thread::yield(); }
    static void wake(RankState&) {}
#endif
};

// Of the system, which not every Python passes on: memory without a name, as an open file, and a handle of a process. -1 without.
static inline int nameless_memory() {
#ifdef SYS_memfd_create
    return int(syscall(SYS_memfd_create, "sums-of-ranks", 1u));  // not for programs that this process starts
#else
    return -1;
#endif
}
static inline int handle_of_process(int process) {
#if defined(__linux__)
    const long PIDFD_OPEN = 434;  // on all architectures
    return int(syscall(PIDFD_OPEN, process, 0u));
#else
    return -1;
#endif
}
