/* Loaded into user-mode Linux 6.1 by scripts/vm: what that lacks on processors and hosts of today. */
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

/* Registers. It stores 2,696 bytes of the processor's extended registers for each process of the guest. A processor with
 * AMX has 11,008, and the host refuses to set fewer than all of them (EFAULT), so the guest would panic at its first
 * process. The rest is sent as zeros: no guest may use AMX, which a process has to ask for. Where a processor has no more
 * registers, nothing changes. */

static long call(long request, long pid, void *address, void *data)
{
    long result;
    register void *fourth __asm__("r10") = data;
    __asm__ volatile("syscall"
                     : "=a"(result)
                     : "a"(SYS_ptrace), "D"(request), "S"(pid), "d"(address), "r"(fourth)
                     : "rcx", "r11", "memory");
    return result;
}

static long set_registers(long pid, const struct iovec *some)
{
    static char all[32768]; /* not on the stack, which is a kernel's; behind `some` it stays zeros */
    static size_t size;     /* of all that the host has */
    if (size == 0) {
        struct iovec whole = {all, sizeof(all)};
        if (call(PTRACE_GETREGSET, pid, (void *)NT_X86_XSTATE, &whole) == 0)
            size = whole.iov_len;
        __builtin_memset(all, 0, sizeof(all));
    }
    if (size <= some->iov_len)
        return call(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, (void *)some);
    __builtin_memcpy(all, some->iov_base, some->iov_len);
    struct iovec whole = {all, size};
    return call(PTRACE_SETREGSET, pid, (void *)NT_X86_XSTATE, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
    va_list arguments;
    va_start(arguments, request);
    long pid = va_arg(arguments, int);
    void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
    va_end(arguments);

    long word = 0, result;
    int peeks = request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER;
    if (request == PTRACE_SETREGSET && address == (void *)NT_X86_XSTATE)
        result = set_registers(pid, data);
    else
        result = call(request, pid, address, peeks ? &word : data);
    if (result < 0) {
        errno = -result;
        return -1;
    }
    return peeks ? word : result;
}

/* The timer. It drops a SIGALRM that comes while it handles the one before, and waits for the next one forever: it queries
 * the timer, which is not set, again and again, while nothing of the guest runs. Here it gets another one then. */

int timer_gettime(timer_t timer, struct itimerspec *value)
{
    static int unset; /* times in a row; there is one timer and one thread that queries it */
    if (syscall(SYS_timer_gettime, (int)(long)timer, value) != 0)
        return -1;
    if (value->it_value.tv_sec != 0 || value->it_value.tv_nsec != 0) {
        unset = 0;
    } else if (++unset == 1000) { /* a millisecond; one that has come is handled between two queries */
        struct itimerspec soon = {.it_value = {.tv_nsec = 1000000}};
        unset = 0;
        return syscall(SYS_timer_settime, (int)(long)timer, 0, &soon, NULL);
    }
    return 0;
}
