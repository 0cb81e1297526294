//go:build !linux

package vaultserver

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
