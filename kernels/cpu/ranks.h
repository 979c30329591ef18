// Sums over tensor-parallel ranks: processes of one host, which share a piece of memory. Each puts its part down there, says so,
// and adds up what all have put down, in the order of the ranks: all get the same bits. The library's all-reduce goes through
// sockets and threads of its own: 400 us for 4 KB between two processes, where this takes a few.
#pragma once
#include <cerrno>
#include <chrono>
#include <ctime>
#include <poll.h>
#include "linear.h"
#include "team.h"

struct RankState {  // the beginning of the memory has one of each rank, in a cache line of its own
    alignas(64) std::atomic<uint32_t> number;  // of parts that it has put down
    std::atomic<uint32_t> sleepers;            // that wait for more
};

// Behind the states each rank has two slots, by turns: whoever puts down a part has read all parts before the last one, and so
// has everybody whose last part is there.
struct Ranks {  // as ranks.py's
    uint8_t* memory;
    size_t rank, count, slot;  // slot: bytes, a multiple of 64
    const int* processes;      // handles of the others' processes, which become readable when these end; -1: none
    size_t patience;           // seconds

    enum Failure { NONE = 0, ENDED = 1, LATE = 2 };  // of a rank: what is returned is 4 * rank + failure

    // values (count) become the sums over all ranks, in FP32, rounded once.
    template <class T> int add_up(T* values, size_t size) const {
        const size_t most = slot / sizeof(T);
        for (size_t first = 0; first < size; first += most) {
            const size_t some = size - first < most ? size - first : most;
            const uint32_t number = put(values + first, some * sizeof(T));
            if (const int failure = wait_for_all(number)) return failure;
            add(number, values + first, some);
        }
        return NONE;
    }
    // out (rows, count, bytes) from each rank's part (rows, bytes); a row fits into a slot.
    int gather(const uint8_t* part, size_t rows, size_t bytes, uint8_t* out) const {
        const size_t most = slot / bytes;
        for (size_t first = 0; first < rows; first += most) {
            const size_t some = rows - first < most ? rows - first : most;
            const uint32_t number = put(part + first * bytes, some * bytes);
            if (const int failure = wait_for_all(number)) return failure;
            for (size_t row = 0; row < some; row++)
                for (size_t from = 0; from < count; from++)
                    std::memcpy(out + ((first + row) * count + from) * bytes, slot_of(from, number) + row * bytes, bytes);
        }
        return NONE;
    }

private:
    enum { PAUSES = 1000, SLICE = 100 };  // SLICE: milliseconds, between two looks at who is still there
    RankState& state(size_t of) const { return ((RankState*)memory)[of]; }
    uint8_t* slot_of(size_t of, uint32_t number) const {
        return memory + count * sizeof(RankState) + (2 * of + number % 2) * slot;
    }

    uint32_t put(const void* part, size_t bytes) const {
        RankState& own = state(rank);
        const uint32_t number = own.number.load(std::memory_order_relaxed) + 1;
        std::memcpy(slot_of(rank, number), part, bytes);
        own.number.store(number);
        if (own.sleepers.load()) wake(own);
        return number;
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
    int wait_for_all(uint32_t number) const {
        for (size_t other = 0; other < count; other++)
            if (other != rank)
                if (const Failure failure = wait_for(other, number)) return int(4 * other + failure);
        return NONE;
    }
    Failure wait_for(size_t other, uint32_t number) const {
        RankState& its = state(other);
        const auto is_there = [&] { return int32_t(its.number.load() - number) >= 0; };
        for (int i = 0; i < PAUSES; i++) {
            if (is_there()) return NONE;
            pause_briefly();
        }
        Failure failure = NONE;
        const auto begin = std::chrono::steady_clock::now();
        its.sleepers.fetch_add(1);  // before looking again: who puts a part down looks at `sleepers` behind having done so
        while (!is_there() && !failure) {
            sleep(its, number - 1);
            if (is_there()) break;
            if (has_ended(other)) failure = ENDED;
            else if (std::chrono::steady_clock::now() - begin > std::chrono::seconds(patience)) failure = LATE;
        }
        its.sleepers.fetch_sub(1);
        return is_there() ? NONE : failure;
    }
    bool has_ended(size_t other) const {
        pollfd one = {processes[other], POLLIN, 0};
        return one.fd >= 0 && poll(&one, 1, 0) > 0;
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
