"""A machine for PTX: executes, on the CPU, what Triton compiles for an NVIDIA GPU.

    arithmetic    floats and bits as PTX has them
    instructions  what every instruction computes: a table
    emit          an instruction → lines of Python over NumPy
    program       PTX text → basic blocks, each compiled to a function
    memory        tensors and shared memory, and who touched which byte when
    launch        a grid of CTAs, warp after warp, with barriers
    counts        instructions, wavefronts, sectors, barriers of a launch
    driver        what Triton takes for its driver, so that kernels launch as they do on a GPU
    sass          the machine code that ptxas makes of it, counted by what was executed of the PTX
    usage         registers, memory and shared memory that a kernel holds

It finds what no result shows, each with the line of the Triton source: see `launch`. What it cannot
show: time, what ptxas makes of the PTX (SASS is counted, never run), and a memory model weaker than
barriers and the order of the program.
"""
