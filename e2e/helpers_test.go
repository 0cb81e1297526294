package e2e_test

import adminv1 "github.com/prism-gateway/prism/protos/prism/admin/v1"

var listAll = &adminv1.ListProxiesRequest{PageSize: 1000}
