// In the place of libcuda.so.1 in the tests: writes down what it is asked for, in the order of the calls.
#include <stdio.h>
#include <string.h>

typedef void* handle;
#define EXPORT __attribute__((visibility("default")))

static char story[1 << 16];
static unsigned char arguments[256];
static unsigned argument_bytes;
static int pushed, failing;

static int tell(const char* what) {
    strncat(story, what, sizeof story - strlen(story) - 1);
    strncat(story, "\n", sizeof story - strlen(story) - 1);
    return 0;
}

EXPORT const char* stub_story(void) { return story; }
EXPORT const unsigned char* stub_arguments(void) { return arguments; }
EXPORT int stub_pushed(void) { return pushed; }
EXPORT void stub_take(unsigned bytes) { argument_bytes = bytes; }  // of a kernel's arguments
EXPORT void stub_fail(int status) { failing = status; }

EXPORT int cuInit(unsigned flags) { return flags == 0 ? tell("init") : 1; }

EXPORT int cuDeviceGet(int* device, int index) {
    *device = 100 + index;
    return 0;
}

EXPORT int cuDevicePrimaryCtxRetain(handle* context, int device) {
    *context = (handle)(0x123400000000 + device);
    return tell("retain");
}

EXPORT int cuCtxPushCurrent_v2(handle context) {
    if (context != (handle)(0x123400000000 + 101)) return 201;
    pushed++;
    return 0;
}

EXPORT int cuCtxPopCurrent_v2(handle* context) {
    *context = 0;
    return pushed-- > 0 ? 0 : 201;
}

EXPORT int cuModuleLoadData(handle* module, const void* image) {
    char line[64];
    snprintf(line, sizeof line, "load %.20s", (const char*)image);
    *module = (handle)0x567800000000;
    return tell(line) + failing;
}

EXPORT int cuModuleGetFunction(handle* function, handle module, const char* name) {
    char line[64];
    if (module != (handle)0x567800000000) return 400;
    snprintf(line, sizeof line, "function %s", name);
    *function = (handle)0x9abc00000000;
    return tell(line);
}

EXPORT int cuMemAlloc_v2(handle* memory, size_t bytes) {
    char line[64];
    snprintf(line, sizeof line, "memory of %zu", bytes);
    *memory = (handle)0x5555;
    return tell(line);
}

EXPORT int cuMemsetD8_v2(handle memory, unsigned char value, size_t bytes) {
    return memory == (handle)0x5555 && value == 0 && bytes > 0 ? tell("zeros") : 1;
}

EXPORT int cuCtxSynchronize(void) { return 0; }

struct shared_handle {
    char bytes[64];
};

EXPORT int cuIpcGetMemHandle(struct shared_handle* shared, handle memory) {
    memset(shared, 5, sizeof *shared);
    return memory == (handle)0x5555 ? tell("handle") : 1;
}

EXPORT int cuIpcOpenMemHandle_v2(handle* memory, struct shared_handle shared, unsigned flags) {
    char line[64];
    snprintf(line, sizeof line, "open %d %u", shared.bytes[63], flags);
    *memory = (handle)0x7777;
    return tell(line);
}

EXPORT int cuFuncSetAttribute(handle function, int attribute, int value) {
    char line[64];
    if (function != (handle)0x9abc00000000) return 400;
    snprintf(line, sizeof line, "attribute %d is %d", attribute, value);
    return tell(line);
}

EXPORT int cuLaunchKernel(handle function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                          unsigned block_y, unsigned block_z, unsigned shared, handle stream, void** parameters,
                          void** extra) {
    char line[128];
    if (function != (handle)0x9abc00000000 || extra != 0 || pushed != 1) return 1;
    memcpy(arguments, parameters[0], argument_bytes);
    snprintf(line, sizeof line, "launch %u %u %u, %u %u %u, %u, %p", grid_x, grid_y, grid_z, block_x, block_y, block_z,
             shared, stream);
    return tell(line);
}

// Laid out as in cuda.h.
struct attribute {
    int id;
    char padding[4];
    union {
        char all[64];
        int allowed;
    } value;
};
struct config {
    unsigned grid[3], block[3], shared;
    handle stream;
    struct attribute* attributes;
    unsigned count;
};

EXPORT int cuLaunchKernelEx(const struct config* c, handle function, void** parameters, void** extra) {
    char line[128];
    if (function != (handle)0x9abc00000000 || extra != 0 || pushed != 1 || sizeof *c != 56 || sizeof *c->attributes != 72)
        return 1;
    memcpy(arguments, parameters[0], argument_bytes);
    snprintf(line, sizeof line, "launch %u %u %u, %u %u %u, %u, %p, %u attribute: %d is %d", c->grid[0], c->grid[1],
             c->grid[2], c->block[0], c->block[1], c->block[2], c->shared, c->stream, c->count, c->attributes[0].id,
             c->attributes[0].value.allowed);
    return tell(line);
}

EXPORT int cuGetErrorString(int status, const char** text) {
    *text = status == 209 ? "no kernel image is available" : "another error";
    return 0;
}
