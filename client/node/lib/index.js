'use strict'

const { Artifact } = require('./artifact')
const { Client } = require('./client')
const { byReason, ...errors } = require('./errors')

module.exports = { Artifact, Client, ...errors }
