#!/usr/bin/env bash
# Runs test binaries on an emulated CPU with AVX-512, for machines that have none.
#
# The kernels have an AVX-512 path that a test can only enter where the CPU offers it, and QEMU does not emulate AVX-512.
# Bochs does. This script builds the tests as usual, puts the binaries with their shared libraries in an initramfs, boots
# it under Bochs as a one-processor machine, and ends with the tests' status. It is slow (see
# "Cost" below) and no part of `cargo test` or of continuous integration.
#
#   scripts/avx512_under_bochs.sh [option]... [-- FILTER or other libtest argument...]
#
#   -p, --package NAME   a package whose tests to run; may be repeated                    (loam-kernels)
#       --lib-only       leave out integration tests and other targets
#       --binary PATH    a test binary that exists already, instead of building; may be repeated
#       --data PATH      a file or directory that the tests read, copied to the same place; may be repeated
#                        (crates/testkit/goldens travels by itself where a binary names testkit)
#       --kernel PATH    the Linux kernel to boot                                         (newest of /boot/vmlinuz-*)
#       --cpu MODEL      a CPU model of `bochs -help cpu`                                 (corei7_skylake_x)
#       --memory MIB     memory of the emulated machine                                   (1024)
#       --timeout S      seconds after which to give up                                   (1800)
#       --keep           leave the work directory behind and say where it is
#
# Examples
#   scripts/avx512_under_bochs.sh -- simd_tests
#   scripts/avx512_under_bochs.sh -p loam-tensor --lib-only -- --skip speed
#
# The default model has exactly AVX-512 F, CD, BW, DQ and VL, so an instruction outside of what the kernels ask for is
# an illegal one there. corei7_icelake_u and tigerlake add VNNI and others. No model of Bochs 2.7 has AVX512_BF16.
#
# Cost, on two cores of a Zen 3 shared with other builds: 20 s to 50 s until the tests begin, and then 200 to 400 times
# the processor time that a test takes outside. Choose tests by name; one that takes 0.5 s outside takes minutes here.
#
# Status: that of the tests; 2 for a missing program or a wrong argument; 3 where the emulated machine did not come to
# the end, or offers no AVX-512. The durations that the tests print are those of the emulated clock and mean nothing.
#
# Needs, on Debian 12 (nothing is installed from here):
#   apt-get install bochs bochs-term bochsbios vgabios busybox-static isolinux syslinux-common xorriso cpio binutils
# and a kernel image. To have one without installing it (the number in the name changes with updates):
#   apt-get download linux-image-6.1.0-56-cloud-amd64 && dpkg-deb -x linux-image-*.deb DIR    # then --kernel DIR/boot/vmlinuz-*
set -euo pipefail

PACKAGES='bochs bochs-term bochsbios vgabios busybox-static isolinux syslinux-common xorriso cpio binutils'
ISOLINUX=/usr/lib/ISOLINUX/isolinux.bin
LDLINUX=/usr/lib/syslinux/modules/bios/ldlinux.c32
BIOS=/usr/share/bochs/BIOS-bochs-latest
VGABIOS=/usr/share/vgabios/vgabios.bin
NEEDED_FLAGS='avx512f avx512bw avx512dq avx512vl avx2 fma'

packages=() binaries=() data=() test_args=()
lib_only='' kernel='' cpu=corei7_skylake_x memory=1024 timeout=1800 keep=''

fail() {
    echo "error: $1" >&2
    [ $# -lt 2 ] || echo "hint: $2" >&2
    exit "${3:-2}"
}

read_arguments() {
    while [ $# -gt 0 ]; do
        case $1 in
            --lib-only) lib_only=1 && shift && continue ;;
            --keep) keep=1 && shift && continue ;;
            -h | --help) sed -n '2,/^set -/{/^#/s/^# \{0,1\}//p}' "$0" && exit 0 ;;
            --) shift && test_args=("$@") && return ;;
        esac
        [ $# -ge 2 ] || fail "\`$1\` is no option, or its value is missing" "$0 --help lists the options"
        case $1 in
            -p | --package) packages+=("$2") ;;
            --binary) binaries+=("$(realpath -e "$2")") ;;
            --data) data+=("$(realpath -e "$2")") ;;
            --kernel) kernel=$(realpath -e "$2") ;;
            --cpu) cpu=$2 ;;
            --memory) memory=$2 ;;
            --timeout) timeout=$2 ;;
            *) fail "unknown option \`$1\`" "$0 --help lists the options" ;;
        esac
        shift 2
    done
}

check_tools() {
    local tool file
    for tool in bochs busybox xorriso cpio strip script ldd; do
        command -v "$tool" >/dev/null || fail "\`$tool\` is missing" "apt-get install $PACKAGES"
    done
    for file in "$ISOLINUX" "$LDLINUX" "$BIOS" "$VGABIOS"; do
        [ -r "$file" ] || fail "$file is missing" "apt-get install $PACKAGES"
    done
    # ldd fails on a static program, which is what the initramfs needs.
    ! ldd "$(command -v busybox)" >/dev/null 2>&1 || fail "busybox is not the static one" "apt-get install busybox-static"
    [ -n "$kernel" ] || kernel=$(ls -1v /boot/vmlinuz-* 2>/dev/null | tail -1) || true
    [ -n "$kernel" ] || fail "no kernel image in /boot" "the head of $0 says how to get one; then --kernel PATH"
}

# The test executables of the packages, one per line, as cargo names them.
build_tests() {
    local args=() package
    for package in "${packages[@]}"; do args+=(-p "$package"); done
    [ -z "$lib_only" ] || args+=(--lib)
    nice cargo test "${args[@]}" --no-run --message-format=json |
        sed -n '/"profile":{[^}]*"test":true/s/.*"executable":"\([^"]*\)".*/\1/p'
}

# Copies a file or directory to the same path below the root of the initramfs.
carry() {
    mkdir -p "$work/root$(dirname "$1")"
    cp -rL "$1" "$work/root$1"
}

quoted() {
    printf " '%s'" "${1//\'/\'\\\'\'}"
}

# The program that the emulated machine runs: every test binary in turn, then power off.
write_init() {
    local binary package_dir line
    cat <<INIT
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev
finish() {
    echo "@@ status \$1"
    # stty waits until the serial port has sent everything; the power would go before that.
    stty -F /dev/ttyS0 sane
    sleep 1
    poweroff -f
}
missing=''
for flag in $NEEDED_FLAGS; do
    grep -qw "\$flag" /proc/cpuinfo || missing="\$missing \$flag"
done
[ -z "\$missing" ] || { echo "@@ missing\$missing"; finish 3; }
export RUST_BACKTRACE=0
status=0
echo "@@ booted"
INIT
    for binary in "${binaries[@]}"; do
        line=/tests/$(basename "$binary")
        for arg in --test-threads=1 --show-output "${test_args[@]}"; do line+=$(quoted "$arg"); done
        package_dir=$repository/crates/$(basename "$binary" | sed 's/^loam_//; s/-[0-9a-f]*$//')
        [ -d "$package_dir" ] || package_dir=$repository
        cat <<INIT
echo "@@ begin $(basename "$binary")"
mkdir -p '$package_dir' /tmp && cd '$package_dir'
$line
code=\$?
[ \$code -eq 0 ] || status=\$code
[ \$code -lt 128 ] || dmesg | tail -3
echo "@@ end \$code"
INIT
    done
    echo 'finish $status'
}

make_image() {
    local binary library path
    mkdir -p "$work/root"/{bin,proc,dev,tmp,tests} "$work/iso/isolinux"
    cp "$(command -v busybox)" "$work/root/bin/busybox"
    for binary in "${binaries[@]}"; do
        strip -o "$work/root/tests/$(basename "$binary")" "$binary"
        for library in $(ldd "$binary" | grep -o '/[^ ]*'); do
            [ -e "$work/root$library" ] || carry "$library"
        done
        if grep -qa 'testkit' "$binary" && [ -d "$repository/crates/testkit/goldens" ]; then
            data+=("$repository/crates/testkit/goldens")
        fi
    done
    for path in "${data[@]}"; do [ -e "$work/root$path" ] || carry "$path"; done
    write_init >"$work/root/init"
    chmod +x "$work/root/init"
    (cd "$work/root" && find . | cpio -o -H newc --quiet) >"$work/iso/initrd"
    cp "$kernel" "$work/iso/linux"
    cp "$ISOLINUX" "$LDLINUX" "$work/iso/isolinux/"
    # clearcpuid: Bochs states a wrong size of the compacted XSAVE area, on which Linux would switch AVX off altogether.
    # tsc_early_khz: the model states its 3.5 GHz; the emulated clock ticks 50 million times a second (`ips` below).
    cat >"$work/iso/isolinux/isolinux.cfg" <<CFG
default tests
prompt 0
label tests
  kernel /linux
  append initrd=/initrd console=ttyS0,115200 loglevel=3 panic=-1 nokaslr mitigations=off clearcpuid=xsavec,xsaves tsc_early_khz=50000 tsc=reliable nowatchdog audit=0 random.trust_cpu=on cryptomgr.notests rcupdate.rcu_expedited=1
CFG
    xorriso -as mkisofs -quiet -o "$work/boot.iso" -b isolinux/isolinux.bin -c isolinux/boot.cat \
        -no-emul-boot -boot-load-size 4 -boot-info-table "$work/iso" 2>"$work/xorriso.log" ||
        fail "xorriso failed: $(tail -1 "$work/xorriso.log")" "" 3
}

write_bochs_configuration() {
    cat >"$work/bochsrc" <<RC
config_interface: textconfig
display_library: term
cpu: model=$cpu, count=1, ips=50000000, reset_on_triple_fault=0, ignore_bad_msrs=1
memory: guest=$memory, host=$memory
romimage: file=$BIOS
vgaromimage: file=$VGABIOS
ata0-master: type=cdrom, path=boot.iso, status=inserted
boot: cdrom
com1: enabled=1, mode=file, dev=serial
clock: sync=none, time0=local
log: bochs.log
panic: action=fatal
error: action=ignore
info: action=ignore
debug: action=ignore
RC
    # Debian's Bochs is built with the debugger, which waits for a command before the first instruction.
    echo c >"$work/commands"
}

# Boots and prints what the tests print; the lines that begin with @@ are the init program's, for this function.
run_machine() {
    local line status='' started=$SECONDS machine
    : >"$work/serial"
    # The text display wants a terminal, which `script` provides.
    (cd "$work" && TERM=vt100 exec timeout -k 10 "$timeout" nice -n 19 \
        script -qec 'bochs -q -f bochsrc -rc commands' terminal.log </dev/null >/dev/null 2>&1) &
    machine=$!
    trap 'kill '"$machine"' 2>/dev/null || true; cleanup' EXIT
    while IFS= read -r line; do
        line=${line%$'\r'}
        case $line in
            '@@ missing '*) fail "the emulated $cpu has no ${line#@@ missing }" "another --cpu" 3 ;;
            '@@ booted') echo "== booted after $((SECONDS - started)) s" ;;
            '@@ begin '*) echo "== ${line#@@ begin }" ;;
            '@@ end '*) echo "== ended with ${line#@@ end } after $((SECONDS - started)) s" ;;
            '@@ status '*) status=${status:-${line#@@ status }} && break ;;
            *'SKIPPED: this machine has no avx512'*) status=3 && echo "$line" ;;
            'test '*' ... '*) printf '%5d s  %s\n' $((SECONDS - started)) "$line" ;;
            *) echo "$line" ;;
        esac
    done < <(tail --pid="$machine" -s 1 -n +1 -f "$work/serial")
    wait "$machine" || true
    grep -q '^@@ status' "$work/serial" ||
        fail "the emulated machine stopped before the tests ended, after $((SECONDS - started)) s" \
            "a longer --timeout (now $timeout s), fewer tests, or --keep and a look at serial and bochs.log" 3
    return "$status"
}

cleanup() {
    if [ -n "$keep" ]; then echo "left in $work" >&2; else rm -rf "$work"; fi
}

main() {
    local built
    read_arguments "$@"
    repository=$(cd "$(dirname "$0")/.." && pwd)
    check_tools
    if [ ${#binaries[@]} -eq 0 ]; then
        [ ${#packages[@]} -gt 0 ] || packages=(loam-kernels)
        built=$(cd "$repository" && build_tests)
        mapfile -t binaries <<<"$built"
    fi
    [ -n "${binaries[0]:-}" ] || fail "no test binary was built"
    work=$(mktemp -d)
    trap cleanup EXIT
    make_image
    write_bochs_configuration
    run_machine
}

main "$@"
