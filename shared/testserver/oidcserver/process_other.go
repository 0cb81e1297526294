//go:build !linux

package oidcserver

import "syscall"

func dieWithParent() *syscall.SysProcAttr { return nil }
